"use strict";
// What a figure's point shows when it is pointed at: settings, scores, images; pressed, it stays, with a link.
(function () {
  const source = document.getElementById("cards");
  if (!source) return;
  const cards = JSON.parse(source.textContent);
  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const box = make("div", { className: "card", hidden: true, role: "tooltip" });
  document.body.append(box);
  let pinned = false;

  function fill(card) {
    const rows = (pairs) => pairs.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })));
    const close = make("button", { type: "button", textContent: "×", ariaLabel: "Close" });
    close.addEventListener("click", hide);
    box.className = `card ${card.kind}`;
    box.replaceChildren(
      make("p", { className: "title" }, make("span", { className: "dot" }), card.title, close),
      ...(card.sheet ? [make("img", { src: card.sheet, alt: "Its images of the first prompts" })] : []),
      make("dl", { className: "scores-of" }, ...rows(card.scores)),
      make("dl", {}, ...rows(card.settings)),
      make("p", { className: "open" }, make("a", { href: card.href, textContent: "Open its page" })));
  }

  function place(x, y) {
    box.hidden = false;
    const room = 14, { offsetWidth: width, offsetHeight: height } = box;
    const leftEdge = scrollX + 8, rightEdge = scrollX + document.documentElement.clientWidth - 8;
    let at = x + room;
    if (at + width > rightEdge) at = Math.max(leftEdge, x - room - width);
    if (at + width > rightEdge) at = Math.max(leftEdge, rightEdge - width);
    const above = y - height / 2, low = scrollY + 8, high = scrollY + innerHeight - height - 8;
    box.style.left = `${at}px`;
    box.style.top = `${Math.max(low, Math.min(above, high))}px`;
  }

  function hide() {
    pinned = false;
    box.hidden = true;
    box.classList.remove("pinned");
  }

  function show(key, event, pin) {
    const card = cards[key];
    if (!card || (pinned && !pin)) return;
    fill(card);
    pinned = pin;
    box.classList.toggle("pinned", pin);
    place(event.pageX, event.pageY);
  }

  document.addEventListener("drawn", ({ target: figure }) => {
    figure.on("plotly_hover", ({ points, event }) => show(points[0].customdata, event, false));
    figure.on("plotly_unhover", () => { if (!pinned) hide(); });
    figure.on("plotly_click", ({ points, event }) => show(points[0].customdata, event, true));
  });
  for (const line of document.querySelectorAll(".parallel .line")) {
    line.addEventListener("pointerenter", (event) => show(line.dataset.key, event, false));
    line.addEventListener("pointerleave", () => { if (!pinned) hide(); });
    line.addEventListener("click", (event) => { event.stopPropagation(); show(line.dataset.key, event, true); });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("pointerdown", (event) => {
    if (pinned && !box.contains(event.target) && !event.target.closest(".figure, .parallel")) hide();
  });
})();
