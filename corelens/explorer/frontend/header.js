// The bar on top: undo, open, save.

const LINK_LIMITS = "Copied. The link works on this machine alone, until corelens ends. A saved page works anywhere.";

const savePageButton = (ui) => button("Save page", ui.savePage, {
  title: "To share: one file that needs neither network nor Python",
});

function headerSection(ui) {
  const undo = button("Undo", () => ui.step(ui.past, ui.future), { title: "Take the last choice back (Ctrl+Z)" });
  const redo = button("Redo", () => ui.step(ui.future, ui.past), { title: "Choose it again (Ctrl+Shift+Z)" });
  const picker = make("input", {
    type: "file", hidden: true, multiple: true, accept: "image/*,.json",
    onchange: () => open(ui, picker.files).finally(() => (picker.value = "")),
  });
  const items = make("div", {},
    button("Page (HTML)", ui.savePage, { title: "To share: one file that needs neither network nor Python" }),
    button("View (JSON)", () => save("corelens-view.json", savedView(ui), "application/json"),
      { title: "With its pictures; “Open” restores it" }),
    button("Figure (PNG)", () => figure(ui).toBlob((blob) => save("corelens.png", blob)),
      { title: "One picture of what is shown" }),
    button("Code (Python)", () => save("corelens_view.py", ui.view.code ?? "", "text/x-python"),
      { title: "The same by calls of corelens" }));
  const saveMenu = make("details", { className: "menu" }, make("summary", { title: "Save this view" }, "Save"), items);
  saveMenu.addEventListener("click", (event) => event.target.tagName === "BUTTON" && (saveMenu.open = false));
  saveMenu.addEventListener("focusout", (event) => saveMenu.contains(event.relatedTarget) || (saveMenu.open = false));
  const copyLink = async () => {
    await copyText(location.href, copy);
    ui.notify(LINK_LIMITS, savePageButton(ui));
  };
  const copy = button("Copy link", copyLink, { title: "For this machine, until corelens ends; to share: save" });
  ui.pick = () => picker.click();
  const element = make("header", {},
    make("h1", {}, "corelens"), span("quiet", ui.about.model),
    make("span", { className: "tools" }, undo, redo,
      button("Reset", () => ui.change(ui.about.first), { title: "Back to the first scene" }),
      button("Open…", ui.pick, { title: "Open pictures, or a saved view" }), picker,
      ui.model.get("linked") ? copy : null, saveMenu,
      button("?", () => ui.help.showModal(), { title: "Help, and the keys" })));
  return { element, draw() { undo.disabled = !ui.past.length; redo.disabled = !ui.future.length; } };
}
