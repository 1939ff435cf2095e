"use strict";

// The viewer of a picture. Two layers lie on each other, and a line says how much of each is seen. Zoom and place are
// the picture's, and all its views (the stage and the maps of the error) show the same part.
const MOST_ZOOM = 32; // screen pixels for a pixel of the picture
const NEAR = 24; // pixels from the line at which a drag takes hold of it in a picture that is zoomed
const FLICKER = 600; // milliseconds: under the three flashes a second that WCAG 2.3.1 allows

for (const slider of document.querySelectorAll(".slider")) {
  const stage = slider.querySelector(".stage");
  const range = stage.querySelector("input");
  const layers = [...stage.querySelectorAll(".layer")];
  const maps = [...document.querySelectorAll(".map")].filter((map) => map.dataset.picture === slider.dataset.picture);
  const views = [stage, ...maps];
  const [left, right] = slider.querySelectorAll("select");
  const name = (select) => select.selectedOptions[0].text;
  const button = (action) => slider.querySelector(`[data-do=${action}]`);
  const told = slider.querySelector("output");
  const view = { zoom: 1, x: 0.5, y: 0.5 }; // zoom: 1 is all of the picture; x, y: the middle, in shares of the picture
  const exact = () => Number(stage.dataset.width) / stage.clientWidth; // the zoom at which pixels are screen pixels
  let timer = null;

  const show = () => {
    stage.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${name(left)}, the rest ${name(right)}`);
    layers.forEach((layer, number) => {
      layer.classList.toggle("left", number === Number(left.value));
      layer.classList.toggle("right", number === Number(right.value));
    });
  };
  const place = (zoom, x, y) => {
    view.zoom = Math.min(Math.max(zoom, 1), Math.max(MOST_ZOOM * exact(), 1));
    const half = 0.5 / view.zoom;
    view.x = Math.min(Math.max(x, half), 1 - half);
    view.y = Math.min(Math.max(y, half), 1 - half);
    for (const shown of views) {
      shown.style.setProperty("--zoom", view.zoom);
      shown.style.setProperty("--x", `${(half - view.x) * 100}%`);
      shown.style.setProperty("--y", `${(half - view.y) * 100}%`);
      shown.classList.toggle("zoomed", view.zoom > 1);
    }
    stage.classList.toggle("pixels", view.zoom > 1.5 * exact());
    const percent = Math.round((100 * view.zoom) / exact());
    told.textContent = view.zoom > 1 ? `${percent} %` : `all that is shown, ${percent} %`;
  };
  // Zooms, and leaves what is at (x, y), in shares of the stage, where it is.
  const zoomAt = (zoom, x, y) => {
    const [seenX, seenY] = [view.x + (x - 0.5) / view.zoom, view.y + (y - 0.5) / view.zoom];
    const to = Math.min(Math.max(zoom, 1), Math.max(MOST_ZOOM * exact(), 1));
    place(to, seenX - (x - 0.5) / to, seenY - (y - 0.5) / to);
  };
  const move = (dx, dy) => place(view.zoom, view.x - dx / view.zoom, view.y - dy / view.zoom);
  const cutAt = (share) => {
    range.value = Math.round(100 * share);
    show();
  };

  const blink = () => cutAt(Number(range.value) > 50 ? 0 : 1);
  const stop = () => {
    if (timer === null) return;
    clearInterval(timer);
    timer = null;
    button("flicker").setAttribute("aria-pressed", "false");
    cutAt(0.5);
  };
  const actions = {
    in: () => place(view.zoom * 2, view.x, view.y),
    out: () => place(view.zoom / 2, view.x, view.y),
    fit: () => place(1, 0.5, 0.5),
    exact: () => place(exact(), view.x, view.y),
    swap: () => {
      stop();
      blink();
    },
    flicker: () => {
      if (timer !== null) return stop();
      // Whoever asked for no motion moves each picture by a press of its own.
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) return blink();
      button("flicker").setAttribute("aria-pressed", "true");
      blink();
      timer = setInterval(blink, FLICKER);
    },
    difference: () => {
      const on = stage.classList.toggle("difference");
      button("difference").setAttribute("aria-pressed", on);
    },
  };
  for (const control of slider.querySelectorAll("[data-do]")) control.addEventListener("click", actions[control.dataset.do]);
  for (const control of [range, left, right]) control.addEventListener("input", show);

  const keys = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "exact", f: "flicker", d: "difference", " ": "swap" };
  const steps = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  range.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in keys) actions[keys[event.key]]();
    else if (event.shiftKey && event.key in steps) move(...steps[event.key].map((step) => step * 0.1));
    else return;
    event.preventDefault();
  });

  // One finger or the mouse moves the line, or a zoomed picture where the line is not near; two fingers zoom and move.
  const fingers = new Map();
  let holdsLine = false;
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const middle = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  const apart = ([a, b]) => Math.hypot((a[0] - b[0]) * stage.clientWidth, (a[1] - b[1]) * stage.clientHeight);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const [x, y] = at(event);
    fingers.set(event.pointerId, [x, y]);
    stage.setPointerCapture(event.pointerId);
    stop();
    holdsLine = view.zoom === 1 || Math.abs(x - range.value / 100) * stage.clientWidth < NEAR;
    if (holdsLine && fingers.size === 1) cutAt(x);
    event.preventDefault(); // no selection of the text under it
    range.focus({ preventScroll: true, focusVisible: false });
  });
  stage.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = [...fingers.values()];
    fingers.set(event.pointerId, at(event));
    const after = [...fingers.values()];
    const [from, to] = [middle(before), middle(after)];
    if (after.length === 1 && holdsLine) return cutAt(to[0]);
    move(to[0] - from[0], to[1] - from[1]);
    if (after.length === 2) zoomAt((view.zoom * apart(after)) / Math.max(apart(before), 1), ...to);
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => fingers.delete(event.pointerId));
  // A wheel alone scrolls the page; a pinch on a trackpad comes as a wheel with Ctrl.
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomAt(view.zoom * 2 ** (-event.deltaY / 100), ...at(event));
    },
    { passive: false },
  );
  stage.addEventListener("dblclick", (event) => (view.zoom > 1 ? actions.fit() : zoomAt(2 * exact(), ...at(event))));
  new ResizeObserver(() => place(view.zoom, view.x, view.y)).observe(stage);
  show();
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
