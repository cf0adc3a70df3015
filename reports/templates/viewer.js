"use strict";
// Images large: two models of one prompt under a slider, from the same noise. Without it a link opens the file.
(function () {
  const gallery = document.querySelector(".gallery");
  const links = document.querySelectorAll("a.zoom");
  if (!links.length || !window.HTMLDialogElement) return;

  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const choice = (label) => {
    const select = make("select", { ariaLabel: label });
    select.addEventListener("change", show);
    return select;
  };
  const left = choice("Left"), right = choice("Right"), seeds = choice("Seed");
  const images = [make("img", { className: "under" }), make("img", { className: "over" })];
  const wipe = make("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, className: "wipe", ariaLabel: "Slide from left to right" });
  const frame = make("div", { className: "frame" }, ...images, make("span", { className: "edge" }), wipe);
  const stage = make("div", { className: "stage" }, frame);
  const caption = make("p", { className: "caption" });
  const button = (text, label, act) => {
    const element = make("button", { type: "button", textContent: text, ariaLabel: label });
    element.addEventListener("click", act);
    return element;
  };
  const zooms = [1, 2, 4].map((times) => {
    const element = button(`${times}×`, `Zoom ${times} times`, () => zoom(times));
    element.ariaPressed = times === 1;
    return element;
  });
  const full = [make("a", { target: "_blank" }), make("a", { target: "_blank" })];
  const dialog = make("dialog", { className: "viewer", ariaLabel: "Compare two models" },
    make("div", { className: "head" }, caption, button("Close", "Close", () => dialog.close())),
    stage,
    make("div", { className: "tools" },
      make("label", {}, "left ", left), make("label", {}, "right ", right), make("label", { className: "of-seed" }, "seed ", seeds),
      make("span", { className: "zooms" }, ...zooms),
      make("span", { className: "steps" }, button("‹", "Previous prompt", () => step(-1)), button("›", "Next prompt", () => step(1))),
      make("span", { className: "full" }, "full size: ", full[0], " · ", full[1])));
  document.body.append(dialog);

  let prompt, shown = [];
  const cells = () => [...prompt.querySelectorAll(".cell")];
  const shots = (cell) => [...cell.querySelectorAll(".shot")];

  function open(link) {
    prompt = link.closest(".prompt");
    const cell = link.closest(".cell"), all = cells();
    fill();
    right.value = all.indexOf(cell);
    const base = all.findIndex((other) => other !== cell && other.classList.contains("base"));
    left.value = base >= 0 ? base : all.findIndex((other) => other !== cell);
    if (left.value === "") left.value = right.value;
    seeds.value = Math.max(0, shots(cell).indexOf(link.closest(".shot")));
    zoom(1);
    show();
    dialog.showModal();
    wipe.focus();
  }

  function fill() {
    for (const select of [left, right]) {
      const before = select.value;
      select.replaceChildren(...cells().map((cell, index) => make("option", { value: index, textContent: cell.dataset.title })));
      if (before !== "" && before < select.length) select.value = before;
    }
    const most = Math.max(...cells().map((cell) => shots(cell).length)), seed = seeds.value || 0;
    seeds.replaceChildren(...Array.from({ length: most }, (_, index) => make("option", { value: index, textContent: index + 1 })));
    seeds.value = Math.min(seed, most - 1);
    seeds.parentElement.hidden = most < 2;
  }

  function show() {
    caption.textContent = prompt.dataset.caption;
    [left, right].forEach((select, side) => {
      const cell = cells()[select.value];
      const found = shots(cell), shot = found[Math.min(seeds.value, found.length - 1)];
      const thumbnail = shot.querySelector("img"), link = shot.querySelector("a.zoom");
      const image = images[side];
      image.hidden = !thumbnail;
      full[side].hidden = !link;
      full[side].textContent = cell.dataset.title;
      if (!thumbnail) return;
      image.alt = thumbnail.alt;
      image.classList.toggle("pixelated", thumbnail.classList.contains("pixelated"));
      image.src = thumbnail.src;
      if (link) {
        full[side].href = link.href;
        const large = new Image(); // shown once it is there: the page may have been moved away from its folder
        large.onload = () => { if (full[side].href === link.href) image.src = link.href; };
        if (!thumbnail.classList.contains("pixelated")) large.src = link.href;
      }
    });
    slide();
  }

  function slide() {
    frame.style.setProperty("--at", `${wipe.value}%`);
  }

  function zoom(times) {
    frame.style.setProperty("--times", times);
    zooms.forEach((element) => { element.ariaPressed = element.textContent === `${times}×`; });
  }

  function step(by) {
    const place = prompt.closest(".images, section, body");
    const all = [...place.querySelectorAll(".prompt")].filter((other) => other.querySelector("a.zoom") && isListed(other));
    prompt = all[(all.indexOf(prompt) + by + all.length) % all.length];
    fill();
    show();
  }

  // What is filtered out is passed over; what only waits in a closed list is not.
  function isListed(figure) {
    const group = figure.closest(".group");
    return !figure.hidden && (!group || getComputedStyle(group).display !== "none");
  }

  wipe.addEventListener("input", slide);
  dialog.addEventListener("keydown", (event) => {
    if (event.target === wipe || event.target.tagName === "SELECT") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  links.forEach((link) => link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(link);
  }));

  if (!gallery) return;
  // Who chooses a kind wants to see all of it.
  gallery.querySelectorAll(".kind-choice").forEach((choice) => choice.addEventListener("change", () => {
    const number = [...choice.classList].find((name) => /^kind-\d/.test(name))?.slice(5);
    if (number) gallery.querySelectorAll(`.group-${number} details`).forEach((details) => { details.open = true; });
  }));

  // Words that a prompt has to hold.
  const find = document.getElementById("find-prompt");
  if (!find) return;
  find.parentElement.hidden = false;
  const nothing = gallery.querySelector(".nothing-found");
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let some = false;
    for (const group of gallery.querySelectorAll(".group")) {
      let here = false;
      for (const figure of group.querySelectorAll(".prompt")) {
        figure.hidden = !words.every((word) => figure.dataset.caption.toLowerCase().includes(word));
        here ||= !figure.hidden;
      }
      group.classList.toggle("without", !here);
      group.querySelectorAll("details").forEach((details) => { if (words.length) details.open = true; });
      some ||= here;
    }
    nothing.hidden = some;
  });
})();
