"use strict";
// Tables that the page carries, as files: it may lie somewhere without the folder that it was written with.
(function () {
  const TYPES = { csv: "text/csv", json: "application/json" };

  function cell(value) {
    if (value === null) return "";
    // A spreadsheet would run it as a formula.
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }

  function written({ columns, rows }, format) {
    if (format === "csv") return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
    const named = rows.map((row) => Object.fromEntries(row.map((value, index) => [columns[index], value])));
    return JSON.stringify(named, null, 1) + "\n";
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-table]");
    if (!button) return;
    const { table, format } = button.dataset;
    const data = JSON.parse(document.getElementById("table-" + table).textContent);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([written(data, format)], { type: TYPES[format] }));
    link.download = table + "." + format;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  for (const hidden of document.querySelectorAll(".exports .saves")) hidden.hidden = false;
})();
