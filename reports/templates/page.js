"use strict";
// Everything below only adds to a page whose text, tables and images are complete without it.
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function template() {
    const size = innerWidth < 600 ? 11 : 13;
    const axis = {
      gridcolor: style("--grid"), zeroline: false, linecolor: style("--line"), tickcolor: style("--line"),
      title: { font: { size, color: style("--soft") }, standoff: 12 }, automargin: true,
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: style("--sans"), size, color: style("--ink") },
        xaxis: axis, yaxis: axis, annotationdefaults: { bgcolor: style("--card"), borderpad: 1 },
        hoverlabel: { font: { family: style("--sans"), size: 13 } },
      },
    };
  }

  function draw() {
    for (const source of document.querySelectorAll("script.figure-data")) {
      const box = document.getElementById(source.dataset.for);
      if (!box || !window.Plotly) continue;
      const figure = JSON.parse(source.textContent);
      figure.layout.template = template();
      Plotly.react(box, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }

  function sortable(table) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(a.cells[index].dataset.order, b.cells[index].dataset.order, down));
        body.append(...rows);
      });
    });
  }

  function compare(a, b, down) {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stays at the end
    const x = Number(a), y = Number(b);
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return down ? -order : order;
  }

  function copyable(button) {
    const source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        getSelection().selectAllChildren(source);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("button.copy").forEach(copyable);
  draw();
  dark.addEventListener("change", draw);
})();
