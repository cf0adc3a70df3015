"use strict";
// Parallel coordinates: both ends of every axis can be moved, and lines outside of any are set back.
(function () {
  const drawing = document.querySelector("svg.parallel");
  if (!drawing) return;
  const TOP = 44, HEIGHT = 300, STEP = 0.05;
  const lines = [...drawing.querySelectorAll(".line")].map((line) => ({ line, heights: line.dataset.heights.split(" ").map(Number) }));
  const axes = [...drawing.querySelectorAll(".axis")];
  const kept = axes.map(() => [0, 1]);
  const said = drawing.closest("section").querySelector(".brushed");
  const rows = [...document.querySelectorAll("tr[data-key]")];
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  axes.forEach((axis, index) => {
    const span = svg("rect", { class: "span", x: -4, width: 8 });
    axis.append(span);
    const ends = [0, 1].map((end) => {
      const points = end ? "-9,-13 9,-13 0,0" : "-9,13 9,13 0,0";
      const handle = svg("g", { class: "handle", tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-valuemin": 0, "aria-valuemax": 100,
        "aria-label": `${axis.dataset.name}: ${end ? "upper" : "lower"} end` });
      handle.append(svg("rect", { x: -14, y: end ? -24 : -4, width: 28, height: 28, class: "grip" }), svg("polygon", { points }));
      handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); handle.focus(); });
      handle.addEventListener("pointermove", (event) => { if (handle.hasPointerCapture(event.pointerId)) move(index, end, height(event)); });
      handle.addEventListener("keydown", (event) => {
        const by = { ArrowUp: STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowLeft: -STEP, Home: -1, End: 1 }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        move(index, end, kept[index][end] + by);
      });
      axis.append(handle);
      return handle;
    });
    axis.place = () => {
      const [low, high] = kept[index].map((value) => TOP + (1 - value) * HEIGHT);
      span.setAttribute("y", high);
      span.setAttribute("height", Math.max(0, low - high));
      ends.forEach((handle, end) => {
        handle.setAttribute("transform", `translate(0 ${end ? high : low})`);
        handle.setAttribute("aria-valuenow", Math.round(100 * kept[index][end]));
        handle.setAttribute("aria-valuetext", `near ${nearest(axis, kept[index][end])}`);
      });
    };
    axis.place();
  });

  function nearest(axis, value) {
    const ticks = JSON.parse(axis.dataset.ticks);
    return ticks.reduce((best, tick) => (Math.abs(tick[0] - value) < Math.abs(best[0] - value) ? tick : best))[1];
  }

  function height(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    return 1 - (at.y - TOP) / HEIGHT;
  }

  function move(index, end, value) {
    const [low, high] = kept[index];
    kept[index][end] = end ? Math.max(low, Math.min(1, value)) : Math.min(high, Math.max(0, value));
    axes[index].place();
    const inside = new Set();
    for (const { line, heights } of lines) {
      const is = heights.every((at, axis) => at >= kept[axis][0] - 1e-4 && at <= kept[axis][1] + 1e-4);
      line.classList.toggle("back", !is);
      if (is) inside.add(line.dataset.key);
    }
    const all = inside.size === lines.length;
    for (const row of rows) row.hidden = !all && !inside.has(row.dataset.key);
    said.hidden = all;
    said.textContent = all ? "" : `${inside.size} of ${lines.length} points lie between the ends; the table of trials shows them alone.`;
  }
})();
