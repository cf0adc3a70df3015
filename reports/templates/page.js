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

  // One after another, while the page can be read: all at once would keep it from opening.
  let waiting = [];
  const later = window.requestIdleCallback ?? setTimeout;

  function draw() {
    waiting = window.Plotly ? [...document.querySelectorAll("script.figure-data")] : [];
    later(drawNext);
  }

  function drawNext() {
    const source = waiting.shift();
    if (!source) return;
    const box = document.getElementById(source.dataset.for);
    if (box) drawFigure(box, JSON.parse(source.textContent));
    later(drawNext);
  }

  function drawFigure(box, figure) {
    const isFirst = !box.data;
    figure.layout.template = template();
    Plotly.react(box, figure.data, figure.layout, { displaylogo: false, displayModeBar: false });
    sizes.observe(box);
    if (isFirst) box.dispatchEvent(new Event("drawn", { bubbles: true }));
  }

  addEventListener("beforeprint", () => { while (waiting.length) drawNext(); });

  // Boxes change their width without the window: a page turned, a section opened.
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.data && target.clientWidth) Plotly.Plots.resize(target);
  });

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
    const source = document.getElementById(button.dataset.copy), label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        getSelection().selectAllChildren(source);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1600);
    });
  }

  // The section that is read is marked in the navigation.
  function follow(nav) {
    const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
      const current = [...links.keys()].find((id) => seen.has(id));
      for (const [id, link] of links) {
        if (id !== current) { link.removeAttribute("aria-current"); continue; }
        link.setAttribute("aria-current", "true");
        nav.scrollTo({ left: link.offsetLeft - nav.clientWidth / 2, behavior: "auto" });
      }
    }, { rootMargin: "-60px 0px -55% 0px" });
    for (const id of links.keys()) { const section = document.getElementById(id); if (section) observer.observe(section); }
  }

  document.querySelectorAll("nav.sections").forEach(follow);
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("button.copy").forEach(copyable);
  draw();
  dark.addEventListener("change", draw);
})();
