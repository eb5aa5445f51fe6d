// Files that are opened and saved.

/** Opens pictures, which the next question is about, or a saved view, which is restored. */
async function open(ui, files) {
  const pictures = [];
  // More than this breaks the connections of notebooks.
  const sizes = [...files].filter((file) => !file.name.endsWith(".json")).map((file) => file.size);
  if (sizes.reduce((sum, size) => sum + size, 0) > ui.about.most_bytes) {
    return ui.showError(`At most ${ui.about.most_bytes >> 20} MiB of pictures can be opened; make them smaller.`);
  }
  for (const file of files) {
    if (file.name.endsWith(".json")) {
      let saved = null;
      try { saved = JSON.parse(await read(file, "readAsText")); } catch { /* reported below */ }
      if (!saved?.state) return ui.showError(`${file.name} is no saved view.`);
      Object.assign(ui.files, saved.pictures);
      ui.change({ ...ui.about.first, ...saved.state });
      return;
    }
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    ui.files[key] = { name: file.name, data: (await read(file, "readAsDataURL")).split(",")[1] };
    pictures.push(key);
  }
  const question = ui.prompt?.question ?? ui.state.question ?? "";
  ui.change({ sample: "", pictures, question, evidence: null, regions: [], token: null });
}

function acceptDrops(root, ui) {
  const markDrop = (dropping) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    root.classList.toggle("dropping", dropping);
  };
  root.addEventListener("dragover", markDrop(true));
  root.addEventListener("dragleave", markDrop(false));
  root.addEventListener("drop", (event) => {
    markDrop(false)(event);
    if (event.dataTransfer.files.length) open(ui, event.dataTransfer.files);
  });
}

function savedView(ui) {
  const pictures = Object.fromEntries(ui.state.pictures.map((key) => [key, ui.files[key]]).filter(([, file]) => file));
  return JSON.stringify({ state: ui.state, pictures }, null, 1);
}

/** This view as a page that needs neither network nor Python; its values can be read, but nothing else chosen. */
function stillPage(ui) {
  const about = { ...ui.about, gallery: [] };
  const values = { about, state: ui.state, prompt: ui.prompt, view: ui.view, error: "", still: true };
  const json = JSON.stringify(values).replaceAll("<", "\\u003c");
  const source = ui.model.get("_esm").replaceAll("</script", "<\\/script");
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>corelens</title><style>${ui.model.get("_css")}</style><body class="corelens-page"><div id="explorer"></div>
<script type="module">${source}
const values = ${json};
const model = { get: (name) => values[name], set() {}, save_changes() {}, on() {}, off() {} };
render({ model, el: document.getElementById("explorer") });
</script></html>`;
}
