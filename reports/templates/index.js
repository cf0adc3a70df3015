"use strict";
// Filters and sorts the cards of all runs; without it all are shown, the newest first.
(function () {
  const form = document.querySelector(".filters");
  const list = document.querySelector(".runs");
  if (!form || !list) return;
  const cards = [...list.children];
  const controls = [...form.querySelectorAll("[data-filter]")];
  const sort = form.querySelector("[data-sort]");
  const shown = document.querySelector(".shown");
  const none = document.querySelector(".none");

  function fits(card) {
    return controls.every(({ dataset, value }) => {
      if (dataset.filter !== "text") return value === "" || card.dataset[dataset.filter] === value;
      return value.toLowerCase().split(/\s+/).every((word) => card.dataset.text.includes(word));
    });
  }

  function order(a, b) {
    const [x, y] = [a, b].map((card) => card.dataset[sort.value]);
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stays at the end
    if (sort.value === "name") return x.localeCompare(y, undefined, { numeric: true });
    return sort.value === "created" ? y.localeCompare(x) : Number(y) - Number(x);
  }

  function show() {
    for (const card of cards) card.hidden = !fits(card);
    list.append(...cards.sort(order));
    const count = cards.filter((card) => !card.hidden).length;
    shown.textContent = `${count} of ${cards.length} shown`;
    none.hidden = count > 0;
    remember();
  }

  // In the address, so that a filtered page can be reloaded and shared.
  function remember() {
    const kept = new URLSearchParams();
    for (const { dataset, value } of controls) if (value) kept.set(dataset.filter, value);
    if (sort.selectedIndex > 0) kept.set("sort", sort.value);
    history.replaceState(null, "", kept.size ? "#" + kept : location.pathname + location.search);
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) control.value = kept.get(control.dataset.filter) ?? "";
    sort.value = kept.get("sort") ?? sort.options[0].value;
    for (const control of [...controls, sort]) if (control.selectedIndex === -1) control.selectedIndex = 0;
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", show);
  document.querySelector("[data-reset]").addEventListener("click", () => { form.reset(); show(); });
  form.hidden = false;
  recall();
  show();
})();
