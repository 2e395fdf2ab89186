"use strict";
// The page reads without this: it only adds sorting and filtering.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.matches(".n") ? parseFloat(cell.textContent.replaceAll(",", "").match(/[-+]?\d[\d.e+-]*/)?.[0]) : cell.textContent;
      };
      const compare = (a, b) => typeof a === "string" ? a.localeCompare(b)
        : (Number.isNaN(a) ? -Infinity : a) - (Number.isNaN(b) ? -Infinity : b) || 0;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b)));
      table.tBodies[0].append(...rows);
    });
  });
}
for (const table of document.querySelectorAll("table.filtered")) {
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.innerHTML = '<label>Outcome <select><option value="">all</option><option value="win">wins</option>' +
    '<option value="loss">losses</option></select></label><label>Containing <input type="search"></label>' +
    '<output role="status"></output>';
  const [select, input, output] = ["select", "input", "output"].map((name) => tools.querySelector(name));
  const rows = [...table.tBodies[0].rows];
  const show = () => {
    const wanted = input.value.toLowerCase();
    let n = 0;
    for (const row of rows) {
      row.hidden = (select.value && row.dataset.outcome !== select.value) ||
        !row.textContent.toLowerCase().includes(wanted);
      n += !row.hidden;
    }
    output.textContent = `${n} of ${rows.length}`;
  };
  select.addEventListener("input", show);
  input.addEventListener("input", show);
  table.parentElement.before(tools);
  show();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
