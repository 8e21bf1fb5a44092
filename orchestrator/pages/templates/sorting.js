for (const button of document.querySelectorAll(".classes thead button")) button.addEventListener("click", () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => a === b ? 0 : a === "" ? 1 : b === "" ? -1 : sign * (a - b || a.localeCompare(b));
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
});
for (const find of document.querySelectorAll(".find")) {
  find.hidden = false;  // it needs this script
  const rows = [...find.parentElement.querySelector(".classes").tBodies[0].rows];
  find.querySelector("input").addEventListener("input", event => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    const found = rows.filter(row => !row.hidden).length;
    find.querySelector("output").textContent = wanted ? `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  });
}
