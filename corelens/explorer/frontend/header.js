// The bar on top: undo, open, save.

function headerSection(ui) {
  const undo = button("Undo", () => ui.step(ui.past, ui.future), { title: "Ctrl+Z" });
  const redo = button("Redo", () => ui.step(ui.future, ui.past), { title: "Ctrl+Shift+Z" });
  const picker = make("input", {
    type: "file", hidden: true, multiple: true, accept: "image/*,.json",
    onchange: () => open(ui, picker.files).finally(() => (picker.value = "")),
  });
  const saveMenu = make("details", { className: "menu" }, make("summary", {}, "Save"), make("div", {},
    button("View (JSON)", () => save("corelens-view.json", savedView(ui), "application/json")),
    button("Figure (PNG)", () => figure(ui).toBlob((blob) => save("corelens.png", blob))),
    button("Page (HTML)", () => save("corelens.html", stillPage(ui), "text/html")),
    button("Code (Python)", () => save("corelens_view.py", ui.view.code ?? "", "text/x-python"))));
  saveMenu.addEventListener("click", (event) => event.target.tagName === "BUTTON" && (saveMenu.open = false));
  saveMenu.addEventListener("focusout", (event) => saveMenu.contains(event.relatedTarget) || (saveMenu.open = false));
  const copy = button("Copy link", () => copyText(location.href, copy));
  ui.pick = () => picker.click();
  const element = make("header", {},
    make("h1", {}, "corelens"), span("quiet", ui.about.model),
    make("span", { className: "tools" }, undo, redo,
      button("Reset", () => ui.change(ui.about.first)), button("Open…", ui.pick), picker,
      ui.model.get("linked") ? copy : null, saveMenu));
  return { element, draw() { undo.disabled = !ui.past.length; redo.disabled = !ui.future.length; } };
}
