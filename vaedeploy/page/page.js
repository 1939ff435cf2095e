"use strict";

// The before-and-after slider: an invisible range input covers the image, and mouse, touch and keyboard move it.
for (const slider of document.querySelectorAll(".slider")) {
  const stage = slider.querySelector(".stage");
  const range = stage.querySelector("input");
  const layers = [...stage.querySelectorAll(".layer")];
  const [left, right] = slider.querySelectorAll("select");
  const name = (select) => select.selectedOptions[0].text;
  const update = () => {
    stage.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${name(left)}, the rest ${name(right)}`);
    layers.forEach((layer, number) => {
      layer.classList.toggle("left", number === Number(left.value));
      layer.classList.toggle("right", number === Number(right.value));
    });
  };
  for (const control of [range, left, right]) control.addEventListener("input", update);
  update();
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const compare = (a, b) => {
        const [x, y] = [a, b].map((row) => row.cells[column]);
        const numbers = "value" in x.dataset && "value" in y.dataset;
        // Compared and not subtracted: Infinity, which stands for identical images, minus itself is NaN.
        if (numbers) return Number(x.dataset.value) < Number(y.dataset.value) ? -1 : 1;
        return x.textContent.localeCompare(y.textContent, "en", { numeric: true });
      };
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort(compare);
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
