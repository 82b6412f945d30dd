// Sorting, filtering, metrics and columns, rows compared query by query, saved files, tooltips, and links to records.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
const data = JSON.parse(document.getElementById("data").textContent);
const sections = all("section[data-board]").map((section) => ({ section, board: data[section.dataset.board] }));

// Sorting. A missing value stays last, whichever way a column is sorted.
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

// Filters hide rows, and with them the points of the charts.
const filter = document.getElementById("filter"), selects = all("[data-filter]");
for (const select of selects.filter(({ options }) => options.length === 1)) {
  const values = new Set(all("table.board tr[data-row]").map((row) => row.dataset[select.dataset.filter]).filter(Boolean));
  select.append(...[...values].sort().map((value) => make("option", value, { value })));
}

function passes(row) {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${row.textContent} ${row.querySelector("[title]")?.title ?? ""}`.toLowerCase();
  return words.every((word) => text.includes(word)) && selects.every(({ dataset, value }) => {
    const own = row.dataset[dataset.filter];
    if (!value) return true;
    return dataset.filter === "parameters" ? Boolean(own) && Number(own) <= Number(value) : own === value;
  });
}

function drawFront(figure) {
  const line = figure.querySelector("polyline.front"), sign = line.dataset.better === "high" ? -1 : 1;
  const points = all("circle[data-row]:not([hidden])", figure).map(({ cx, cy }) => [cx.baseVal.value, cy.baseVal.value]);
  let best = Infinity;
  const front = points.sort((a, b) => sign * (a[0] - b[0]) || a[1] - b[1]).filter(([, y]) => y < best && (best = y, true));
  line.setAttribute("points", front.map((point) => point.join()).join(" "));
}

function applyFilters() {
  const rows = all("table.board tbody tr");
  for (const row of rows) row.hidden = !passes(row);
  for (const { section } of sections) {
    const hidden = new Set(all("table.board tr[hidden]", section).map((row) => row.dataset.row));
    for (const mark of all("svg [data-row]", section)) mark.toggleAttribute("hidden", hidden.has(mark.dataset.row));
    all("figure", section).forEach(drawFront);
  }
  const left = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").value = left < rows.length ? `${left} of ${rows.length} rows` : "";
}
filter.addEventListener("input", applyFilters);
selects.forEach((select) => select.addEventListener("change", applyFilters));

// Metrics and columns of a leaderboard.
function showMetric(section, board, metric) {
  const heads = all("table.board thead th", section).map((head) => head.textContent);
  section.classList.toggle("other-metric", metric !== board.metric);
  for (const row of all("table.board tr[data-row]", section)) {
    heads.forEach((head, column) => {
      const score = board.scores[metric][row.dataset.row][head], cell = row.children[column];
      const figure = cell.querySelector(".figure");
      if (score === undefined || !figure) return;
      figure.textContent = score.toFixed(2);
      cell.dataset.v = score;
    });
  }
}

function save(name, type, content) {
  const link = make("a", "", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A text that a spreadsheet would take for a formula gets a quote before it.
const quote = (text) => `"${(/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" : "") + text.replaceAll('"', '""')}"`;

function toCsv(table) {
  const lines = all("tr", table).filter((row) => !row.hidden).map((row) => [...row.children].filter((cell) => !cell.hidden)
    .map((cell) => quote(cell.querySelector("[title]")?.title || cell.querySelector(".figure")?.textContent || cell.textContent)).join());
  return `${lines.join("\n")}\n`;
}

for (const { section, board } of sections) {
  const metric = section.querySelector("select.metric"), table = section.querySelector("table.board");
  metric.append(...board.metrics.map((name) => make("option", name, { value: name })));
  metric.addEventListener("change", () => showMetric(section, board, metric.value));
  section.querySelector("button.csv").addEventListener("click", () => save("leaderboard.csv", "text/csv", toCsv(table)));
  const columns = section.querySelector("details.columns");
  all("thead th", table).forEach((head, column) => {
    const box = make("input", "", { type: "checkbox", checked: true }), label = make("label");
    label.append(box, ` ${head.textContent}`);
    box.addEventListener("change", () => {
      for (const row of table.rows) row.children[column].hidden = !box.checked;
    });
    columns.append(label);
  });
}

// Two rows query by query. Texts are other people's: they are set as text, and isolated from the direction of the page.
// An image is a small copy that retbench drew, inside of this file.
function describe(id, text, image) {
  const parts = [make("b", id)];
  if (image) parts.push(make("img", "", { className: "thumbnail", src: image, alt: `image of ${id}`, loading: "lazy" }));
  if (text) parts.push(make("bdi", text, { className: "excerpt" }));
  return parts;
}

function listDocuments({ documents, passages, relevant, images }, side, query) {
  const cell = make("td", "", { className: "documents" }), ranking = documents[side]?.[query];
  if (!ranking) cell.textContent = "not kept";
  else if (!passages) cell.textContent = ranking.join(", ");
  else cell.append(...ranking.map((id) => {
    const isRelevant = relevant[query].includes(id), line = make("div", "", { className: isRelevant ? "relevant" : "" });
    line.append(...describe(`${isRelevant ? "✓ " : ""}${id}`, passages[id] ?? "not in the corpus", images?.[id]));
    return line;
  }));
  return cell;
}

function listQueries(board, task, a, b) {
  const { ids, scores, texts, passages, query_images: queryImages, note } = board.queries[task];
  const lines = ids.map((id, query) => ({ id, query, a: scores[a][query], b: scores[b][query] }))
    .map((line) => ({ ...line, difference: line.b - line.a }))
    .sort((x, y) => Math.abs(y.difference) - Math.abs(x.difference));
  const table = make("table"), head = make("tr"), body = make("tbody");
  for (const name of ["query", "A", "B", "B − A", "first documents of A", "first documents of B"]) head.append(make("th", name));
  for (const line of lines) {
    const row = make("tr"), sign = line.difference > 0 ? "up" : line.difference < 0 ? "down" : "same";
    const query = make("td", texts ? "" : line.id, { className: texts ? "documents" : "" });
    if (texts) query.append(...describe(line.id, texts[line.query], queryImages?.[line.id]));
    row.append(query, make("td", line.a.toFixed(1)), make("td", line.b.toFixed(1)),
      make("td", `${line.difference < 0 ? "−" : "+"}${Math.abs(line.difference).toFixed(1)}`, { className: sign }));
    for (const side of [a, b]) row.append(listDocuments(board.queries[task], side, line.query));
    body.append(row);
  }
  table.append(make("thead"), body);
  table.tHead.append(head);
  const counts = ["up", "down", "same"].map((sign) => all(`td.${sign}`, body).length);
  const frame = make("div", "", { className: "wide" });
  frame.append(table);
  const summary = `B is better on ${counts[0]} queries, A on ${counts[1]}; ${counts[2]} are equal.`;
  const remark = passages ? `${note} ✓ marks a document that was judged relevant.` : note;
  return [make("p", summary), make("p", remark, { className: "remarks" }), frame];
}

for (const { section, board } of sections) {
  const part = section.querySelector("details.queries"), tasks = Object.keys(board.queries);
  part.hidden = tasks.length === 0 || board.rows.length < 2;
  const [task, a, b] = ["task", "a", "b"].map((name) => part.querySelector(`select.${name}`));
  task.append(...tasks.map((name) => make("option", name, { value: name })));
  const fill = () => {
    const rows = Object.keys(board.queries[task.value]?.scores ?? {});
    for (const select of [a, b]) select.replaceChildren(...rows.map((row) => make("option", board.rows[row], { value: row })));
    b.selectedIndex = 0;
    a.selectedIndex = Math.min(1, rows.length - 1);
  };
  const showPair = () => {
    const ready = part.open && a.value && b.value;
    part.querySelector(".result").replaceChildren(...(ready ? listQueries(board, task.value, a.value, b.value) : []));
  };
  task.addEventListener("change", () => { fill(); showPair(); });
  for (const select of [a, b]) select.addEventListener("change", showPair);
  part.addEventListener("toggle", showPair);
  fill();
}

// Tooltips.
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
  if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
    event.preventDefault();
    filter.focus();
  }
});

// One chart at a time, and its picture as a file.
function savePng(svg, name) {
  const copy = svg.cloneNode(true), style = getComputedStyle(document.body);
  const own = all("text", svg), colours = new Map(all(".axis,.grid,.front,.baseline", svg).map((mark, at) => [at, getComputedStyle(mark).stroke]));
  all("text", copy).forEach((text, at) => { text.setAttribute("style", `font:12px sans-serif;fill:${getComputedStyle(own[at]).fill}`); });
  all(".axis,.grid,.front,.baseline", copy).forEach((mark, at) => { mark.setAttribute("stroke", colours.get(at)); });
  const image = new Image(), canvas = make("canvas"), { width, height } = svg.viewBox.baseVal;
  image.addEventListener("load", () => {
    Object.assign(canvas, { width: 2 * width, height: 2 * height });
    const paper = canvas.getContext("2d");
    paper.fillStyle = style.backgroundColor;
    paper.fillRect(0, 0, canvas.width, canvas.height);
    paper.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(`${name}.png`, "image/png", blob));
  });
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
}

for (const select of all("select.cost")) {
  const figures = all("figure", select.closest("section"));
  const choose = () => figures.forEach((figure) => { figure.hidden = figure.dataset.cost !== select.value; });
  select.addEventListener("change", choose);
  choose();
  select.closest("section").querySelector("button.png").addEventListener("click", () => {
    savePng(figures.find((figure) => !figure.hidden).querySelector("svg"), select.value);
  });
}

// A link to a record opens it and what it stands in.
function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!(target instanceof HTMLDetailsElement)) return;
  for (let part = target; part; part = part.parentElement.closest("details")) part.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", open);
open();
