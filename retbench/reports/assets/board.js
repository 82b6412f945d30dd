// Sorting, filtering, tooltips, one picture at a time, and records that open when a link leads to them.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A missing value stays last, whichever way a column is sorted.
function order(a, b, way) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
  const numbers = [Number(a), Number(b)];
  return way * (numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1]);
}

for (const table of all("table.board")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    const falls = was ? was === "ascending" : head.classList.contains("number") && column > 0;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const value = (row) => row.children[column].dataset.v;
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order(value(a), value(b), falls ? -1 : 1)));
  }));
}

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = all("table.board tbody tr");
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const left = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").value = words.length ? `${left} of ${rows.length} rows` : "";
});

const tip = document.getElementById("tip");
function show(target) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const above = box.top - own.height - 6;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 4))}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
}
for (const event of ["mouseover", "focusin"]) {
  document.addEventListener(event, ({ target }) => {
    const owner = target.closest("[data-tip]");
    if (owner) show(owner);
    else tip.hidden = true;
  });
}
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
  if (event.key === "/" && document.activeElement !== filter) {
    event.preventDefault();
    filter.focus();
  }
});

for (const select of all("select.cost")) {
  const figures = all("figure", select.closest("section"));
  const choose = () => figures.forEach((figure) => { figure.hidden = figure.dataset.cost !== select.value; });
  select.addEventListener("change", choose);
  choose();
}

function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", open);
open();
