"use strict";
const by = id => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const trials = data.trials, WORDS = ["left", "right", "neither"];
const place = "lungfirst.choices." + data.page;
let state = {reader: "", choices: {}, seconds: {}}, now = 0, since = performance.now();

function notKept() {
  by("trouble").textContent = "This browser does not keep your choices: save them as a file before you close the page.";
  by("trouble").hidden = false;
}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(place) ?? "{}");
    state.reader = typeof kept.reader === "string" ? kept.reader : "";
    for (const {trial} of trials) {
      const choice = kept.choices?.[trial], seconds = kept.seconds?.[trial];
      if (WORDS.includes(choice)) {
        state.choices[trial] = choice;
        state.seconds[trial] = Number.isFinite(seconds) ? seconds : 0;
      }
    }
  } catch { notKept(); }
}

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { notKept(); }
}

const answered = () => trials.filter(t => state.choices[t.trial]).length;
const firstOpen = () => trials.findIndex(t => !state.choices[t.trial]);

function show() {
  const end = now >= trials.length, done = answered();
  by("ask").hidden = end;
  by("done").hidden = !end;
  by("bar").value = done;
  by("place").textContent = end ? `${done} of ${trials.length} chosen`
    : `Question ${now + 1} of ${trials.length}, ${done} chosen`;
  if (end) {
    const left = trials.length - done;
    by("count").textContent = left ? `${left} of ${trials.length} are still open.`
      : "You have chosen for all of them. Save your choices below.";
    by("open").hidden = !left;
    return;
  }
  const trial = trials[now], choice = state.choices[trial.trial];
  for (const name of ["film", "left", "right"]) by(name).src = trial[name];
  by("label").textContent = trial.label ? ` (${trial.label})` : "";
  for (const button of document.querySelectorAll("[data-choice]"))
    button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
  for (const side of ["left", "right"])
    document.querySelector(".side." + side).classList.toggle("chosen", choice === side);
  by("back").disabled = now === 0;
  since = performance.now();
}

function go(to) {
  now = Math.max(0, Math.min(trials.length, to));
  show();
  if (now === trials.length) by("done").focus();
}

function choose(choice) {
  if (now >= trials.length) return;
  const {trial} = trials[now];
  const spent = Math.round((performance.now() - since) / 100) / 10;
  state.choices[trial] = choice;
  state.seconds[trial] = Math.round(((state.seconds[trial] ?? 0) + spent) * 10) / 10;
  keep();
  go(now + 1);
}

const rows = () => trials.filter(t => state.choices[t.trial]).map(t =>
  ({trial: t.trial, choice: state.choices[t.trial], seconds: state.seconds[t.trial] ?? 0}));

function asJson() {
  return JSON.stringify({schema: "lungfirst.choices", version: 1, page: data.page,
    reader: state.reader, choices: rows()}, null, 2) + "\n";
}

function asCsv() {
  const cell = value => `"${String(value).replaceAll('"', '""')}"`;
  const lines = rows().map(r => [data.page, state.reader, r.trial, r.choice, r.seconds].map(cell).join(","));
  return ["page,reader,trial,choice,seconds", ...lines].join("\n") + "\n";
}

function save(kind) {
  state.reader = by("reader").value.trim();
  keep();
  if (!state.reader) {
    by("saved").textContent = "Give your name or initials first.";
    by("reader").focus();
    return;
  }
  const text = kind === "json" ? asJson() : asCsv();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: kind === "json" ? "application/json" : "text/csv"}));
  const who = state.reader.replace(/[^A-Za-z0-9_-]+/g, "_").slice(0, 40) || "reader";
  link.download = `choices_${data.page}_${who}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  by("saved").textContent = `${rows().length} of ${trials.length} choices saved as ${link.download}.`;
}

const CHOICES = {ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "neither", 0: "neither"};
const BACK = ["ArrowUp", "Backspace"];

addEventListener("keydown", event => {
  const typing = event.target instanceof HTMLInputElement;
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!(event.key in CHOICES) && !BACK.includes(event.key)) return;
  event.preventDefault();
  if (event.key in CHOICES) choose(CHOICES[event.key]); else go(now - 1);
});
for (const button of document.querySelectorAll("[data-choice]"))
  button.addEventListener("click", () => choose(button.dataset.choice));
by("back").addEventListener("click", () => go(now - 1));
by("next").addEventListener("click", () => go(now + 1));
by("open").addEventListener("click", () => go(firstOpen()));
by("json").addEventListener("click", () => save("json"));
by("csv").addEventListener("click", () => save("csv"));
by("reader").addEventListener("input", () => { state.reader = by("reader").value.trim(); keep(); });
let sure = false;
function ask(asked) {
  sure = asked;
  by("clear").textContent = asked ? "Forget all choices?" : "Start again";
}
by("clear").addEventListener("blur", () => ask(false));
by("clear").addEventListener("click", () => {
  if (!sure) return ask(true);
  state = {reader: state.reader, choices: {}, seconds: {}};
  keep();
  ask(false);
  go(0);
});

load();
by("reader").value = state.reader;
go(firstOpen() < 0 ? trials.length : firstOpen());
