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

/** Draws the large panel for a head. */
function paintThumbnail(ui, canvas, wall, name) {
  const panel = wall.panels[ui.panel], image = panel?.grids.length ? loadedImage(ui, panel.src) : null;
  if (!image) return;
  canvas.width = 96;
  canvas.height = Math.round(96 * panel.height / panel.width);
  const marks = { regions: [], evidence: [] };
  paint(ui, canvas.getContext("2d"), 96, panel, image, wall.maps.get(name), wall.offsets[ui.panel], marks);
}
