// The view as one picture to save.

function figure(ui) {
  const { panels, question, tokens } = ui.prompt;
  const [focus] = ui.view.maps;
  const left = 40, right = 690, top = 96, side = 560;
  const columns = Math.ceil(Math.sqrt(panels.length)), panelSide = side / columns;
  const tallest = Math.max(...panels.map((panel) => panelSide * panel.height / panel.width), 0);
  const rows = ui.about.n_heads.length, size = Math.min(670 / Math.max(...ui.about.n_heads), 34);
  const height = top + 40 + Math.max(Math.ceil(panels.length / columns) * tallest, rows * size + 150);
  const canvas = make("canvas", { width: 2 * 1400, height: 2 * height });
  const context = canvas.getContext("2d");
  const write = (text, x, y, size = 15, align = "left") => {
    context.fillStyle = "#1f2430";
    context.font = `${size}px system-ui, sans-serif`;
    context.textAlign = align;
    context.fillText(text, x, y);
  };
  context.scale(2, 2);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, 1400, height);
  write(question, left, 44, 22);
  const queryToken = tokens.find(({ position }) => position === ui.state.token) ?? tokens.at(-1);
  const highest = number(maxAttention(focus));
  write(focus ? `${focus.head}, from “${queryToken.text.trim()}”; brightest ${highest}` : "", left, 76);
  write(ui.about.metrics[ui.state.metric], right, 76);
  const offsets = cellOffsets(panels);
  panels.forEach((panel, index) => {
    context.save();
    context.translate(left + (index % columns) * panelSide, top + Math.floor(index / columns) * tallest);
    const image = loadedImage(ui, panel.src);
    paint(context, panelSide - 6, panel, image, focus, offsets[index], regionMarks(ui), ui.strength);
    context.restore();
  });
  const list = rankedHeads(ui), scale = scaleOf(list);
  for (const { name, layer, head, value } of list) {
    const x = right + head * size, y = top + (rows - 1 - layer) * size, inner = size - 2;
    const share = scale.share(value), marks = headMarks(ui, name);
    if (!head) write(`L${layer}`, x - 10, y + size / 2 + 4, 12, "right");
    context.fillStyle = value === null ? "#e6e9ee" : css(colour(share));
    context.fillRect(x, y, inner, inner);
    context.strokeStyle = markColour(value === null ? 1 : share);
    context.lineWidth = size / 18;
    context.beginPath();
    if (marks.core) context.arc(x + inner / 2, y + inner / 2, inner / 4, 0, 2 * Math.PI);
    for (const [from, to] of marks.ablated ? [[0.15, 0.85], [0.85, 0.15]] : []) {
      context.moveTo(x + inner * from, y + inner * 0.15);
      context.lineTo(x + inner * to, y + inner * 0.85);
    }
    context.stroke();
    if (marks.shown) outline(context, [x, y, inner, inner], "#ff9d5c", []);
  }
  const bottom = top + rows * size;
  const changes = [ui.state.ablated.length ? `${ui.state.ablated.join(", ")} ablated (${ui.state.how})` : "",
    ui.state.regions.length ? `regions hidden: ${ui.state.regions.length}` : ""].filter(Boolean).join("; ");
  const { before, after } = ui.view;
  const key = "outlined: shown; ring: CoRe head; cross: ablated";
  write(`${number(scale.low)} to ${number(scale.high)}; ${key}`, right, bottom + 24, 13);
  write(`answer: ${before.text} (${percent(before.probability)})`, right, bottom + 70, 20);
  if (changes) write(`with changes: ${after.text} (${percent(after.probability)})`, right, bottom + 100, 20);
  write(changes, right, bottom + 124, 13);
  return canvas;
}
