"use strict";
// The gallery. Texts only ever go in as text nodes or attributes, never as markup.
const SVG = "http://www.w3.org/2000/svg", PAGE = 24, KEPT = 96, FEW = 4;
const at = id => document.getElementById(id);
const on = (id, kind, act) => at(id).addEventListener(kind, act);
const films = JSON.parse(at("index").textContent), words = JSON.parse(at("words").textContent);
const byId = new Map(films.map(film => [film.id, film]));
const cards = at("cards"), dialog = at("film"), find = at("find");
let list = films, page = 0, shownFilm = "", member = "", own = null;

// --- small helpers ---
function filled(element, attributes, ...children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const make = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, ...children);
const shape = (tag, attributes) => filled(document.createElementNS(SVG, tag), attributes);
// columns: [name, class, cell of a row, its own class]; the first one heads the rows
function table(columns, rows, attributes = {}) {
  const head = columns.map(([name, kind]) => make("th", {scope: "col", class: kind}, name));
  const line = row => make("tr", {}, ...columns.map(([, kind, cell, kindOf], n) => n
    ? make("td", {class: kindOf ? kindOf(row) : kind}, cell(row))
    : make("th", {scope: "row"}, cell(row))));
  return make("table", attributes, make("thead", {}, make("tr", {}, ...head)),
              make("tbody", {}, ...rows.map(line)));
}
const percent = value => value === null ? "–" : (100 * value).toFixed(value < 0.0995 ? 1 : 0) + " %";
const times = value => value === null ? "–" : value.toFixed(2) + " ×";
const yes = value => value === null ? "–" : value ? "yes" : "no";
const count = number => number.toLocaleString("en") + (number === 1 ? " film" : " films");

// A film's pictures and members are parsed when it is shown; the last ones are kept.
const parsed = new Map();
function whole(id) {
  let film = parsed.get(id);
  if (!film) {
    film = JSON.parse(at("data-" + id).textContent);
    parsed.set(id, film);
    if (parsed.size > KEPT) parsed.delete(parsed.keys().next().value);
  }
  return film;
}

// --- drawing ---
function drawing(film, crop, map) {
  const [width, height] = film.view, seen = film.seen;
  const box = crop ? seen : [0, 0, width, height];
  const who = map && map.map ? " with the attention of " + map.name : "";
  const view = shape("svg", {class: "view", viewBox: box.join(" "), role: "img",
                             "aria-label": (crop ? "Crop " : "Film ") + film.name + who});
  const place = ([x, y, w, h]) => ({x, y, width: w, height: h});
  const picture = (href, where, more) =>
    shape("image", {href, ...place(where), preserveAspectRatio: "none", ...more});
  view.append(picture(crop ? film.crop : film.picture, box));
  if (map && map.map) view.append(picture(map.map, seen, {class: "map", filter: "url(#inferno)"}));
  if (film.field) view.append(shape("path", {class: "field", d: film.field}));
  if (film.box) view.append(shape("rect", {class: "box", ...place(film.box)}));
  for (const at of film.findings) view.append(shape("rect", {class: "finding", ...place(at)}));
  if (film.crop && !crop) view.append(shape("rect", {class: "seen", ...place(seen)}));
  return view;
}
function pictures(film, map, large) {
  const crop = large ? "Crop, as the network saw it" : "Crop";
  const given = [["picture", false, "Film"], ["crop", true, crop]].filter(([kind]) => film[kind]);
  return given.map(([, crop, name]) => make(
    "figure", given.length === 1 ? {class: "alone"} : {},
    drawing(film, crop, map), make("figcaption", {}, name)));
}
function badges(film) {
  const row = make("p", {class: "badges"});
  if (film.decision) {
    const [sign, name] = words.decisions[film.decision] || ["", film.decision.replaceAll("_", " ")];
    const mark = sign ? [make("span", {"aria-hidden": "true"}, sign), " "] : [];
    row.append(make("span", {class: sign ? "badge d-" + film.decision : "badge"}, ...mark, name));
  }
  for (const flag of film.flags) row.append(make("span", {class: "badge flag"}, flag));
  return row;
}
function membersTable(film) {
  const few = [...film.members].sort(worse).slice(0, FEW), rest = film.members.length - few.length;
  const low = m => m.lift !== null && m.lift < 1 ? "n low" : "n";
  const columns = [["Member", "", m => m.name], ["Probability", "n", m => percent(m.probability)],
                   ["Lift", "n", m => times(m.lift), low]];
  const shown = table(columns, few, {class: "members"});
  return rest ? [shown, make("p", {class: "what"}, "and " + rest + " more")] : [shown];
}
const worse = (a, b) => b.flags.length - a.flags.length || (a.lift ?? 99) - (b.lift ?? 99);
const mapOf = film => film.members.find(m => m.name === member) || film.members[film.worst];

function card(entry) {
  const film = whole(entry.id), parts = pictures(film, mapOf(film), false);
  const link = make("a", {href: "#" + film.id}, film.name);
  const item = make("li", {class: "card", id: film.id});
  if (parts.length) item.append(make("div", {class: "pictures"}, ...parts));
  item.append(make("h3", {}, link));
  item.append(make("p", {class: "what"},
    [film.label, film.source, film.patient].filter(Boolean).join(" · ")), badges(film));
  if (film.reason) item.append(make("p", {class: "what"}, film.reason));
  if (film.members.length) item.append(...membersTable(film));
  item.addEventListener("click", event => { if (event.target !== link) link.click(); });
  return item;
}

// --- one page of the gallery ---
const pages = () => Math.max(1, Math.ceil(list.length / PAGE));
function draw() {
  page = Math.min(Math.max(page, 0), pages() - 1);
  cards.replaceChildren(...list.slice(page * PAGE, (page + 1) * PAGE).map(card));
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
      for (const flag of Object.keys(words.flags)) seen.has(flag) || seen.set(flag, 0);
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
function facts(film) {
  const rows = [["Label", film.label], ["Source", film.source], ["Patient", film.patient],
    ["Status", film.status === "ok" ? "" : film.status.replaceAll("_", " ")],
    ["Why", film.reason], ["Lung field", film.field ? "drawn by " + (film.lung_by === "human" ?
      "a person" : "the lung-field network") : "none found"]];
  const out = make("dl", {class: "facts"});
  for (const [name, value] of rows) {
    if (value) out.append(make("dt", {}, name), make("dd", {}, value));
  }
  const link = make("a", {href: "#" + film.id}, "Link to this film");
  const reasons = make("ul", {class: "reasons"}, ...film.reasons.map(r => make("li", {}, r)));
  const why = film.flags.map(flag => make("p", {},
    make("strong", {}, flag + ": "), words.flags[flag] || ""));
  return [make("p", {class: "own"}, film.film), badges(film), ...why,
          ...(film.reasons.length ? [reasons] : []), out, make("p", {class: "own"}, link)];
}
function figures(film) {
  if (!film.members.length) return [make("p", {class: "soft"}, "No network judged this film.")];
  function choice(m) {
    const radio = make("input", {type: "radio", name: "own-member", value: m.name});
    radio.checked = m === own;
    radio.addEventListener("change", () => { own = m; showPictures(film); });
    return make("label", {class: "slide"}, radio, m.name);
  }
  const columns = [["Map of member", "", choice], ["Probability", "n", m => percent(m.probability)],
    ["Lift", "n", m => times(m.lift)], ["On lung", "n", m => percent(m.inside)],
    ["Lung area", "n", m => percent(m.area)], ["On border", "n", m => percent(m.border)],
    ["Outside box", "n", m => percent(m.outside_box)], ["On writing", "n", m => percent(m.text)],
    ["Brightest on lung", "n", m => yes(m.pointing)],
    ["Brightest on finding", "n", m => yes(m.finding_hit)],
    ["Flags", "", m => m.flags.join(", ") || "–"]];
  const used = columns.filter(([, , cell], n) => n < 3 || film.members.some(m => cell(m) !== "–"));
  return [make("div", {class: "wide"}, table(used, film.members))];
}
function showPictures(film) {
  const parts = pictures(film, own, true);
  at("film-pictures").replaceChildren(...(parts.length ? parts :
    [make("p", {class: "soft"}, "There is no picture to show.")]));
}
function show(id) {
  const film = whole(id);
  shownFilm = id;
  own = mapOf(film);
  at("film-name").textContent = film.name;
  showPictures(film);
  at("film-facts").replaceChildren(...facts(film));
  at("film-members").replaceChildren(...figures(film));
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
for (const static_ of document.querySelectorAll("#worst .card")) static_.removeAttribute("id");
fillFilters();
draw();
follow();
document.documentElement.dataset.ready = Math.round(performance.now());  // ms since the page was asked for
