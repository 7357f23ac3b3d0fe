"use strict";
// All of the page can be read without this: it sorts and filters tables, and switches between light and dark.

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function keyOf(cell) {
  const text = cell.textContent.trim();
  return { number: "n" in cell.dataset ? Number(cell.dataset.n) : NaN, text };
}

function compare(a, b) {
  const first = Number.isNaN(a.number), second = Number.isNaN(b.number);
  if (!first && !second) return a.number - b.number;
  if (first !== second) return first ? 1 : -1;
  return collator.compare(a.text, b.text);
}

function sortBy(table, column, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending"
    || (!heading.hasAttribute("aria-sort") && heading.classList.contains("number"));
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: keyOf(row.cells[column]) }));
  const blank = (key) => Number.isNaN(key.number) && (key.text === "" || key.text === "–");
  rows.sort((a, b) => blank(a.key) - blank(b.key) || (descending ? compare(b.key, a.key) : compare(a.key, b.key)));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.append(button);
  });
}

function makeFilterable(table, figure) {
  const rows = Array.from(table.tBodies[0].rows);
  let texts = null;
  const tools = document.createElement("p");
  const input = document.createElement("input");
  const shown = document.createElement("span");
  tools.className = "tools";
  input.type = "search";
  input.placeholder = "Filter: words, an id, a speaker, a flag";
  input.setAttribute("aria-label", "Show only the rows that contain these words");
  shown.className = "quiet";
  shown.setAttribute("role", "status");
  tools.append(input, shown);
  figure.querySelector(".scroll").before(tools);
  const apply = () => {
    texts ??= rows.map((row) => Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase());
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      count += row.hidden ? 0 : 1;
    });
    shown.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  input.addEventListener("input", apply);
}

function makeTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remember = (theme) => { try { localStorage.setItem("encodeonce-theme", theme); } catch { /* a page from disk may not */ } };
  try { const theme = localStorage.getItem("encodeonce-theme"); if (theme) root.dataset.theme = theme; } catch { /* as above */ }
  const button = document.createElement("button");
  const now = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
  const label = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
  button.id = "theme";
  button.type = "button";
  button.setAttribute("aria-label", "Switch between light and dark");
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    label();
  });
  system.addEventListener("change", label);
  label();
  document.querySelector("header").append(button);
}

makeTheme();
for (const figure of document.querySelectorAll("figure.table")) {
  const table = figure.querySelector("table");
  if (table.tBodies[0].rows.length > 2) makeSortable(table);
  if (figure.classList.contains("long")) makeFilterable(table, figure);
}
