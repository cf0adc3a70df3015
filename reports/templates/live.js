"use strict";
// Follows a search: asks the server for the version of the report, and shows a newer one by loading the page again,
// which runs every script as it is meant to run. Where the reader was is kept over it. While something is read,
// opened or selected nothing moves: a bar offers what is new.
(function () {
  const bar = document.getElementById("live");
  const says = bar.querySelector(".says");
  const button = bar.querySelector("button");
  const shown = bar.dataset.version;
  const EVERY = 3000, PATIENCE = 4, IDLE = 5000, KEPT = "bench-live";
  let failures = 0, touched = 0;

  function say(text) {
    if (says.textContent !== text) says.textContent = text;
  }

  // Where the reader is

  const place = (element) => element.closest("[id]")?.id ?? "";
  const keyed = {
    "main details": (each) => place(each) + "/" + (each.querySelector("summary")?.textContent ?? ""),
    "main input, main select": (each) => each.id || place(each) + "/" + (each.name || each.getAttribute("aria-label") || each.parentElement.textContent),
    "main button[aria-pressed]": (each) => place(each) + "/" + each.textContent,
    "main th[aria-sort]": (each) => place(each.closest("table")) + "/" + each.textContent,
  };

  function entries(selector, value) {
    return [...document.querySelectorAll(selector)].map((each) => [keyed[selector](each), value(each)]);
  }

  function anchor() {
    const found = [...document.querySelectorAll("main [id]")].findLast((each) => each.offsetParent && each.getBoundingClientRect().top <= 1);
    return found ? { id: found.id, offset: found.getBoundingClientRect().top } : { id: "", offset: -scrollY };
  }

  function keep() {
    const state = {
      open: entries("main details", (each) => each.open),
      values: entries("main input, main select", (each) => (/radio|checkbox/.test(each.type) ? each.checked : each.value)),
      pressed: entries("main button[aria-pressed]", (each) => each.ariaPressed === "true"),
      sorted: entries("main th[aria-sort]", (each) => each.getAttribute("aria-sort")),
      anchor: anchor(),
    };
    try { sessionStorage.setItem(KEPT, JSON.stringify(state)); } catch { /* storage is full or forbidden */ }
  }

  function recall() {
    let state;
    try { state = JSON.parse(sessionStorage.getItem(KEPT)); sessionStorage.removeItem(KEPT); } catch { /* as above */ }
    if (!state) return;
    const apply = (selector, pairs, set) => {
      const known = new Map(pairs);
      for (const each of document.querySelectorAll(selector)) {
        const value = known.get(keyed[selector](each));
        if (value !== undefined) set(each, value);
      }
    };
    apply("main details", state.open, (each, open) => { each.open = open; });
    apply("main input, main select", state.values, (each, value) => {
      const field = /radio|checkbox/.test(each.type) ? "checked" : "value";
      if (each[field] === value || each.type === "file") return;
      each[field] = value;
      for (const kind of ["input", "change"]) each.dispatchEvent(new Event(kind, { bubbles: true }));
    });
    apply("main button[aria-pressed]", state.pressed, (each, pressed) => { if ((each.ariaPressed === "true") !== pressed) each.click(); });
    for (const [key, direction] of state.sorted) sort(key, direction);
    const { id, offset } = state.anchor;
    const top = id ? document.getElementById(id)?.getBoundingClientRect().top + scrollY : 0;
    scrollTo({ top: (top || 0) - offset, behavior: "instant" });
  }

  function sort(key, direction) {
    const head = [...document.querySelectorAll("table th")].find((each) => keyed["main th[aria-sort]"](each) === key);
    for (let turn = 0; head && turn < 2 && head.getAttribute("aria-sort") !== direction; turn++) head.querySelector("button")?.click();
  }

  // What is new

  function busy() {
    const active = document.activeElement;
    return Date.now() - touched < IDLE || scrollY > innerHeight / 2 || !getSelection().isCollapsed
      || (active && active !== document.body && active !== button)
      || document.querySelector("main details[open], dialog[open]") !== null;
  }

  function load() {
    keep();
    location.reload();
  }

  function lose() {
    bar.classList.add("lost");
    say("The search's process does not answer: it has ended or was stopped. This is how far it was when you last saw it.");
    button.textContent = "Try again";
    button.hidden = false;
    button.onclick = () => location.reload();
  }

  async function look() {
    let found;
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      found = await answer.json();
      failures = 0;
    } catch {
      failures += 1;
      if (failures >= PATIENCE) return lose();
    }
    if (found?.over) return load();
    if (found && found.version !== shown) {
      if (!busy()) return load();
      const more = found.num_scored - Number(bar.dataset.scored);
      say(more > 0 ? `${more} new ${more === 1 ? "score" : "scores"}.` : "There is something new.");
      button.hidden = false;
    }
    setTimeout(look, EVERY);
  }

  for (const kind of ["pointerdown", "keydown", "wheel", "touchmove"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  button.onclick = load;
  recall();
  if (bar.dataset.over) return;
  say("The search is running. This page grows with it.");
  setTimeout(look, EVERY);
})();
