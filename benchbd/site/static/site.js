"use strict";

// Tables are sorted by a click on a heading: by numbers, else by text; rows without a value stay last.
function keyOf(row, at) {
  const key = row.cells[at].dataset.key;
  return key === undefined ? null : key;
}

function compared(one, other) {
  const [a, b] = [Number(one), Number(other)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return one < other ? -1 : one > other ? 1 : 0;
}

function sortBy(heading) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const at = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...body.rows];
  rows.sort((one, other) => {
    const [a, b] = [keyOf(one, at), keyOf(other, at)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compared(a, b);
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

// One filter for all tables of a page.
const filter = document.querySelector(".filter");
if (filter) {
  const [text, status, count] = ["text", "status", "count"].map((id) => document.getElementById(`filter-${id}`));
  const rows = [...document.querySelectorAll("table.filterable > tbody > tr")];
  const update = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      const kept = words.every((word) => content.includes(word)) &&
        (!status.value || row.dataset.status.split(" ").includes(status.value));
      row.hidden = !kept;
      shown += kept;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  text.addEventListener("input", update);
  status.addEventListener("change", update);
  filter.hidden = false;
  update();
}
