// The wall: every head's attention as a thumbnail over the picture.

/** The wall as maps by head, with the coarser grids of their panels; none while values are shown. */
function wallOf(ui) {
  const { wall } = ui.view;
  if (!wall || !ui.current) return null;
  const bytes = Uint8Array.from(atob(wall.cells), (letter) => letter.charCodeAt(0));
  const size = bytes.length / wall.heads.length;
  const maps = new Map(wall.heads.map((name, index) => [name, {
    head: name, cells: Array.from(bytes.subarray(index * size, (index + 1) * size), (byte) => (byte / 255) ** 2),
  }]));
  const panels = ui.prompt.panels.map((panel, index) => ({ ...panel, grids: wall.grids[index] }));
  return { maps, panels, offsets: cellOffsets(panels) };
}

/** Draws the panels of a head side by side. */
function paintThumbnail(ui, canvas, wall, name) {
  const panels = wall.panels.filter(({ grids }) => grids.length);
  const images = panels.map((panel) => loadedImage(ui, panel.src));
  if (!panels.length || images.includes(null)) return;
  const side = 96, height = side * Math.max(...panels.map((panel) => panel.height / panel.width));
  canvas.width = side * panels.length;
  canvas.height = Math.round(height);
  const context = canvas.getContext("2d");
  panels.forEach((panel, index) => {
    context.setTransform(1, 0, 0, 1, side * index, 0);
    const start = wall.offsets[wall.panels.indexOf(panel)];
    paint(ui, context, side, panel, images[index], wall.maps.get(name), start, { regions: [], evidence: [] });
  });
}
