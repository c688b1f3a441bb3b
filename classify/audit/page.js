"use strict";
// The gallery. Texts were escaped where the cards were written; here they are never made markup.
const PAGE = 24;
const at = id => document.getElementById(id);
const on = (id, kind, act) => at(id).addEventListener(kind, act);
const films = JSON.parse(at("index").textContent), words = JSON.parse(at("words").textContent);
const byId = new Map(films.map(film => [film.id, film]));
const cards = at("cards"), dialog = at("film"), find = at("find");
let list = films, page = 0, shownFilm = "", member = "";

const count = number => number.toLocaleString("en") + (number === 1 ? " film" : " films");

// A film's card stands in the page, where it is one of the worst, or inert in a template; its
// pictures are there once.
const sources = new Map();
for (const {content} of document.querySelectorAll("template")) {
  sources.set(content.firstElementChild.id, content.firstElementChild);
}
for (const card of document.querySelectorAll("#worst .card")) {
  sources.set(card.id, card);
  card.removeAttribute("id");
}
function cardOf(id) {
  const card = sources.get(id).cloneNode(true), map = card.querySelector(".map");
  card.id = id;
  if (map) {
    map.removeAttribute("id");
    card.querySelector(".again")?.replaceWith(map.cloneNode());
    card.querySelector(".worst").dataset.map = map.getAttribute("href") ?? "";
    paint(card, rowOf(card));
  }
  return card;
}
// the row of the chosen member's figures, or of the worst member's
const rowOf = card => [...card.querySelectorAll(".figures tr")].find(
  row => row.querySelector("input")?.value === member) ?? card.querySelector(".worst");
function paint(pictures, row) {
  const uri = row.dataset.map, who = " with the attention of " + row.querySelector("input").value;
  for (const map of pictures.querySelectorAll(".map")) {
    const view = map.closest("svg");
    uri ? map.setAttribute("href", uri) : map.removeAttribute("href");
    view.setAttribute("aria-label", view.dataset.of + (uri ? who : ""));
  }
}

// --- one page of the gallery ---
const pages = () => Math.max(1, Math.ceil(list.length / PAGE));
function draw() {
  page = Math.min(Math.max(page, 0), pages() - 1);
  cards.replaceChildren(...list.slice(page * PAGE, (page + 1) * PAGE).map(film => cardOf(film.id)));
  at("nothing").hidden = list.length > 0;
  const of = list.length === films.length ? "" : " of " + films.length.toLocaleString("en");
  const text = (of ? list.length.toLocaleString("en") + of + " films" : count(films.length)) +
    ", page " + (page + 1) + " of " + pages();
  at("status").textContent = at("status-end").textContent = text;
  for (const button of document.querySelectorAll("[data-go]")) {
    const to = page + Number(button.dataset.go);
    button.disabled = to < 0 || to >= pages();
  }
}
function turn(step, focus) {
  const to = page + step;
  if (to < 0 || to >= pages()) return false;
  page = to;
  draw();
  if (focus !== undefined) focusCard(focus < 0 ? cards.children.length - 1 : focus);
  return true;
}
function focusCard(number) {
  const one = cards.children[number];
  one?.querySelector("a").focus({preventScroll: true});
  one?.scrollIntoView({block: "nearest"});
}

// --- filters, search, sort ---
const SEARCHED = ["film", "source", "label", "patient", "status", "reason", "flags", "reasons"];
const textOf = film => [...SEARCHED.flatMap(key => film[key]), film.decision.replaceAll("_", " ")]
  .join("\n").toLowerCase();
const filters = {
  flags: (film, wanted) => wanted === "any flag" ? film.flags.length > 0
    : wanted === "no flag" ? !film.flags.length : film.flags.includes(wanted.slice(5)),
  label: (film, wanted) => film.label === wanted.slice(5),
  source: (film, wanted) => film.source === wanted.slice(5),
  decision: (film, wanted) => film.decision === wanted.slice(5),
};
function choose() {
  const terms = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = Object.keys(filters).map(key => [key, at("by-" + key).value]).filter(([, v]) => v);
  list = films.filter(film => wanted.every(([key, value]) => filters[key](film, value)) &&
    terms.every(term => textOf(film).includes(term)));
  const by = at("sort").value;
  const named = new Intl.Collator("en", {numeric: true}).compare;
  if (by === "name") list.sort((a, b) => named(a.name, b.name) || named(a.film, b.film));
  else if (by !== "worst") {
    const sign = by === "lift" ? 1 : -1;  // where nothing was measured, the film comes last
    list.sort((a, b) => (a[by] === null) - (b[by] === null) || sign * (a[by] - b[by]));
  }
  page = 0;
  draw();
}
function fillFilters() {
  for (const key of Object.keys(filters)) {
    const select = at("by-" + key), seen = new Map();
    for (const film of films) {
      for (const value of [film[key]].flat()) seen.set(value, (seen.get(value) || 0) + 1);
    }
    seen.delete("");
    const named = key === "decision" ? v => (words.decisions[v] || ["", v])[1] : v => v;
    select.append(new Option("all", ""));
    if (key === "flags") {
      for (const flag of words.flags) seen.has(flag) || seen.set(flag, 0);
      const any = films.filter(film => film.flags.length).length;
      select.append(new Option(`any flag (${any})`, "any flag"),
                    new Option(`no flag (${films.length - any})`, "no flag"));
    }
    for (const [value, n] of [...seen].sort((a, b) => a[0].localeCompare(b[0]))) {
      select.append(new Option(`${named(value)} (${n})`, "just " + value));
    }
    select.closest("label").hidden = key !== "flags" && seen.size < 2;
    select.addEventListener("change", choose);
  }
  const names = [...new Set(films.flatMap(film => film.members))];
  at("member").append(new Option("least lift of each film", ""), ...names.map(n => new Option(n, n)));
  at("member").closest("label").hidden = names.length < 2;
}

// --- one film, large ---
function show(id) {
  const card = cardOf(id), row = rowOf(card), figures = card.querySelector(".figures");
  shownFilm = id;
  at("film-name").textContent = byId.get(id).name;
  at("film-pictures").replaceChildren(...card.querySelector(".pictures").children);
  at("film-facts").replaceChildren(...card.querySelectorAll(".fact"));
  at("film-members").replaceChildren(figures);
  for (const radio of figures.querySelectorAll("input")) {
    const own = radio.closest("tr");
    radio.checked = own === row;
    radio.addEventListener("change", () => paint(at("film-pictures"), own));
  }
  slide("own", at("opacity").value);
  const place = list.findIndex(entry => entry.id === id);
  at("before").disabled = place <= 0;
  at("after").disabled = place < 0 || place >= list.length - 1;
  if (place >= 0 && Math.floor(place / PAGE) !== page) {
    page = Math.floor(place / PAGE);
    draw();
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
function setHash(hash) {  // some browsers forbid it for local files: the film is shown all the same
  try { history.replaceState(null, "", hash || location.pathname + location.search); } catch { }
}
function step(by) {
  const place = list.findIndex(entry => entry.id === shownFilm), next = list[place + by];
  if (place < 0 || !next) return;
  setHash("#" + next.id);
  show(next.id);
}
function follow() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (byId.has(id)) show(id);
  else if (dialog.open) dialog.close();
}
dialog.addEventListener("close", () => {
  if (byId.has(location.hash.slice(1))) setHash("");
  const place = list.findIndex(entry => entry.id === shownFilm);
  if (place >= 0) focusCard(place % PAGE);
});
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
on("close", "click", () => dialog.close());
on("before", "click", () => step(-1));
on("after", "click", () => step(1));
window.addEventListener("hashchange", follow);

// --- sliders and switches ---
function slide(kind, value) {
  const [input, now, where] = kind === "own" ? ["own-opacity", "own-now", at("detail")]
    : ["opacity", "opacity-now", document.documentElement];
  at(input).value = value;
  at(now).textContent = value + " %";
  where.style.setProperty("--map", value / 100);
}
on("opacity", "input", event => slide("all", event.target.value));
on("own-opacity", "input", event => slide("own", event.target.value));
for (const box of document.querySelectorAll("[data-show]")) {
  box.addEventListener("change", () => {
    document.body.classList.toggle("hide-" + box.dataset.show, !box.checked);
    for (const other of document.querySelectorAll(`[data-show=${box.dataset.show}]`)) {
      other.checked = box.checked;
    }
  });
}
on("member", "change", event => { member = event.target.value; draw(); });
on("sort", "change", choose);
find.addEventListener("input", choose);
on("tools", "submit", event => event.preventDefault());
on("clear", "click", () => {
  find.value = "";
  for (const key of Object.keys(filters)) at("by-" + key).value = "";
  at("sort").value = "worst";
  choose();
});
for (const button of document.querySelectorAll("[data-go]")) {
  button.addEventListener("click", () => {
    turn(Number(button.dataset.go));
    at("status").scrollIntoView({block: "nearest"});
  });
}

// --- keys ---
const typing = element => element.matches("input, select, textarea");
const STEPS = {ArrowLeft: -1, ArrowRight: 1};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (dialog.open) {
    if (event.key in STEPS && !typing(event.target)) {
      event.preventDefault();
      step(STEPS[event.key]);
    }
  } else if (event.key === "/" && !typing(event.target)) {
    event.preventDefault();
    find.focus();
    find.select();
  } else if (event.target.closest("#cards")) {
    moveCard(event);
  } else if (event.key in STEPS && event.target.closest(".pager")) {
    event.preventDefault();
    turn(STEPS[event.key]);
  }
});
function moveCard(event) {
  const here = [...cards.children].indexOf(event.target.closest(".card"));
  const across = getComputedStyle(cards).gridTemplateColumns.split(" ").length;
  const last = cards.children.length - 1;
  const to = {ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - across,
              ArrowDown: here + across, Home: 0, End: last}[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (to < 0) turn(-1, -1);
  else if (to > last) event.key === "ArrowDown" && here < last - last % across
    ? focusCard(last) : turn(1, 0);
  else focusCard(to);
}

// --- start ---
cards.addEventListener("click", event => {
  if (!event.target.closest("a")) event.target.closest(".card")?.querySelector("a").click();
});
fillFilters();
draw();
follow();
document.documentElement.dataset.ready = Math.round(performance.now());  // ms since the page was asked for
