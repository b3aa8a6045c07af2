(function () {
  "use strict";
  var table = document.getElementById("table"), body = table.tBodies[0], rows = Array.from(body.rows);
  var find = document.getElementById("find"), choice = document.getElementById("event"), beyond = document.getElementById("beyond"), shown = document.getElementById("shown");
  Array.from(new Set(rows.map(function (r) { return r.dataset.event; }))).sort().forEach(function (name) {
    if (!name) { return; }
    var option = document.createElement("option"); option.textContent = name; option.value = name; choice.appendChild(option);
  });
  function filter() {
    var words = find.value.toLowerCase().split(/\s+/).filter(Boolean), count = 0;
    rows.forEach(function (row) {
      var text = row.textContent.toLowerCase();
      var keep = words.every(function (w) { return text.indexOf(w) >= 0; }) && (!choice.value || row.dataset.event === choice.value) && (!beyond.checked || row.dataset.beyond === "1");
      row.hidden = !keep; count += keep ? 1 : 0;
    });
    shown.textContent = count + " of " + rows.length + " rows";
  }
  function key(row, column) { var cell = row.cells[column]; return "key" in cell.dataset ? cell.dataset.key : cell.textContent; }
  Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      Array.from(table.tHead.rows[0].cells).forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort(function (a, b) {
        var x = key(a, column), y = key(b, column);
        if (x === "" || y === "") { return (x === "") - (y === ""); }
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
  [find, choice, beyond].forEach(function (input) { input.addEventListener("input", filter); });
  filter();
}());
