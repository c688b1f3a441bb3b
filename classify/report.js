"use strict";
const table = document.getElementById("films");
if (table) {
  const body = table.tBodies[0];
  const list = document.getElementById("cards"), found = document.getElementById("found");
  const rows = Array.from(body.rows);
  const cardOf = row => document.getElementById(row.dataset.card);
  const find = document.getElementById("find");
  const texts = new Map(rows.map(row => [row, (row.textContent + (cardOf(row)?.textContent ?? "")).toLowerCase()]));
  document.querySelector(".tools").hidden = false;
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const numeric = head.classList.contains("n");
      rows.sort((a, b) => {
        const x = value(a), y = value(b);
        if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
        const order = numeric ? x - y : x.localeCompare(y, undefined, {numeric: true});
        return up ? order : -order;
      });
      body.append(...rows);
      list.append(...rows.map(cardOf).filter(Boolean));
    });
  }
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = words.every(word => texts.get(row).includes(word));
      row.hidden = !fits;
      const card = cardOf(row);  // it may stand on another page
      if (card) card.hidden = !fits;
      shown += fits;
    }
    found.textContent = words.length ? shown + " of " + rows.length + " films" : "";
  });
}
