"use strict";
(() => {
  // What a cell sorts by: a number where it has one, else its text; null where it is missing.
  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.sort;
    if (value === undefined) return cell.textContent;
    return value === "" ? null : Number(value);
  };
  // Missing values stay last in either direction, and numbers stand before texts.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
    if (typeof a === "number") return sign * (a - b);
    return sign * a.localeCompare(b, "en", { numeric: true });
  };
  for (const header of document.querySelectorAll("th[aria-sort]")) {
    header.querySelector("button").addEventListener("click", () => {
      const table = header.closest("table");
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) {
        other.setAttribute("aria-sort", "none");
      }
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const column = header.cellIndex;
      const sign = ascending ? 1 : -1;
      const rows = [...table.tBodies[0].rows];  // sort is stable: equal rows keep their order
      rows.sort((a, b) => compare(key(a, column), key(b, column), sign));
      table.tBodies[0].append(...rows);
    });
  }

  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const label = () => { toggle.textContent = isDark() ? "Light colours" : "Dark colours"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  prefersDark.addEventListener("change", label);
  label();
  toggle.hidden = false;

  // Paper shows what is folded, and leaves it as it was.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });
})();
