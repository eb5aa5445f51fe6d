// Mouse, pen, finger and keyboard on a picture.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Applies a tool to a part of a picture: marks it as the evidence, hides it, or shows it again. */
function applyTool(ui, tool, panel, box) {
  const [left, top, right, bottom] = box.map((edge) => Math.round(edge * 10) / 10);
  const clipped = [Math.max(left, 0), Math.max(top, 0), Math.min(right, panel.width), Math.min(bottom, panel.height)];
  if (tool === "read" || clipped[0] >= clipped[2] || clipped[1] >= clipped[3]) return;
  const region = { media: panel.media, box: clipped, seconds: panel.seconds };
  if (tool === "evidence") ui.change({ evidence: [region] });
  else ui.change({ regions: [...without(ui.state.regions, region), region] });
}

/** Applies a tool to the patch at a point; a region that is hidden there is shown again. */
function applyToolAt(ui, tool, panel, [x, y]) {
  const hidden = ui.state.regions.find(({ media, box }) => media === panel.media
    && box && box[0] <= x && x < box[2] && box[1] <= y && y < box[3]);
  if (tool === "knock out" && hidden) ui.change({ regions: without(ui.state.regions, hidden) });
  else if (cellAt(panel, x, y)) applyTool(ui, tool, panel, cellAt(panel, x, y).box);
}

/** Lets mouse, pen, finger and keyboard read a picture and use tools on it; `pointer` is where they are. */
function listen(ui, canvas, panel, pointer, repaint) {
  const point = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const scale = panel.width / bounds.width;
    return [(event.clientX - bounds.left) * scale, (event.clientY - bounds.top) * scale];
  };
  const toolOf = (event) => (ui.model.get("still") ? "read" : event.shiftKey ? "knock out" : ui.tool);
  const on = (name, listener) => canvas.addEventListener(name, (event) => { listener(event); repaint(); });
  on("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointer.drag = { from: point(event), tool: toolOf(event) };
  });
  on("pointermove", (event) => Object.assign(pointer, { panel, at: point(event) }));
  on("pointerup", (event) => {
    if (!pointer.drag) return;
    const { from, tool } = pointer.drag, to = point(event);
    pointer.drag = null;
    const isDrag = Math.hypot(to[0] - from[0], to[1] - from[1]) * canvas.clientWidth / panel.width > 5;
    if (isDrag) applyTool(ui, tool, panel, boxBetween(from, to));
    else applyToolAt(ui, tool, panel, to);
  });
  const leave = () => Object.assign(pointer, { panel: null, drag: null });
  for (const name of ["pointerleave", "pointercancel", "blur"]) on(name, leave);
  on("keydown", (event) => {
    const isActive = pointer.panel === panel;
    const cell = cellAt(panel, ...(isActive ? pointer.at : [0, 0])) ?? cellAt(panel, 0, 0);
    if (!cell || !(event.key in ARROWS || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    const [left, top, right, bottom] = cell.box;
    if (!(event.key in ARROWS)) return applyToolAt(ui, toolOf(event), panel, [(left + right) / 2, (top + bottom) / 2]);
    const [dx, dy] = isActive ? ARROWS[event.key] : [0, 0]; // the first press shows where the keyboard is
    const to = [(left + right) / 2 + dx * (right - left), (top + bottom) / 2 + dy * (bottom - top)];
    if (cellAt(panel, ...to)) Object.assign(pointer, { panel, at: to });
  });
}
