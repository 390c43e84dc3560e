"use strict";
(() => {
  const LIMIT = 60; // rows shown before "show all"
  const $ = (id) => document.getElementById(id);
  const table = $("table"), body = table.tBodies[0], rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const filter = $("filter"), status = $("status"), sort = $("sort"), more = $("more");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  let all = false, column = 0, down = false;

  for (const part of document.querySelectorAll(".tools")) part.hidden = false;

  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      const fits = (!status.value || row.classList.contains(status.value)) &&
        words.every((word) => texts.get(row).includes(word));
      if (fits) found += 1;
      row.hidden = !fits || (!all && found > LIMIT);
    }
    $("shown").textContent = `${found} of ${rows.length} sites`;
    more.hidden = found <= LIMIT;
    more.textContent = all ? `Show only the first ${LIMIT}` : `Show all ${found} rows`;
  }

  function order(index, reverse) {
    column = index;
    down = reverse;
    const keyed = rows.map((row, i) => [value(row), i, row]);
    keyed.sort((a, b) => {
      const c = typeof a[0] === "number" ? a[0] - b[0] : a[0].localeCompare(b[0], "en", { numeric: true });
      return (down ? -c : c) || a[1] - b[1];
    });
    rows.splice(0, rows.length, ...keyed.map((entry) => entry[2]));
    body.append(...rows);
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    sort.value = `${column}${down ? "d" : "u"}`;
    show();
  }

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    const name = head.textContent;
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      const number = head.classList.contains("num") && i > 0;
      order(i, i === column ? !down : number);
    });
    head.replaceChildren(button);
    for (const way of ["u", "d"]) sort.add(new Option(`${name} ${way === "u" ? "↑" : "↓"}`, `${i}${way}`));
  });
  sort.addEventListener("change", () => order(parseInt(sort.value, 10), sort.value.endsWith("d")));
  filter.addEventListener("input", show);
  status.addEventListener("change", show);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    all = !all;
    show();
  });
  const fold = $("fold-all");
  fold.addEventListener("click", () => {
    const parts = Array.from(document.querySelectorAll("details"));
    const open = !parts.some((part) => part.open);
    for (const part of parts) part.open = open;
    fold.textContent = open ? "Fold all" : "Unfold all";
  });
  window.addEventListener("beforeprint", () => {
    for (const row of rows) row.hidden = false;
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
  window.addEventListener("afterprint", show);
  order(0, false);
})();
