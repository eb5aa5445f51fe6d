// What is asked: samples, own pictures, a question, and the token that looks.

function gallery(ui) {
  const choose = (sample) =>
    ui.change({ sample, pictures: [], question: null, evidence: null, regions: [], token: null });
  const items = ui.about.gallery.map(({ id, question, src }) => button(
    src ? make("img", { src, alt: question }) : question, () => choose(id), { title: question, "data-sample": id }));
  const own = button("Your picture", () => ui.pick(), { className: "own" });
  const element = make("nav", { className: "gallery", "aria-label": "Samples" }, ...items, own);
  return {
    element,
    draw() {
      for (const item of [...items, own]) {
        const chosen = item === own ? ui.state.pictures.length > 0 : item.dataset.sample === ui.state.sample;
        item.setAttribute("aria-current", String(chosen));
      }
    },
  };
}

function question(ui) {
  const input = make("input", {
    type: "text", placeholder: "Ask about the picture", "aria-label": "Question", maxLength: 2000,
  });
  const note = make("p", { className: "note", role: "status" });
  const tokens = make("div", { className: "tokens", role: "group", "aria-label": "The token that looks" });
  const form = make("form", {
    onsubmit: (event) => {
      event.preventDefault();
      const sample = ui.about.gallery.find(({ id }) => id === ui.state.sample);
      const asked = sample && input.value === sample.question ? null : input.value;
      ui.change({ question: asked, token: null, evidence: null });
    },
  }, input, make("button", { type: "submit" }, "Ask"));
  let shown = null;

  function draw() {
    const asked = ui.prompt?.question ?? ui.state.question ?? "";
    if (asked !== shown) input.value = shown = asked; // what is being typed stays
    note.textContent = ui.prompt?.note ?? "";
    note.hidden = !note.textContent;
    if (!ui.current) return;
    const [focus] = ui.view.maps;
    const last = ui.prompt.tokens.at(-1).position;
    const looking = ui.state.token ?? last;
    refill(tokens, span("quiet", "looks from"), ...ui.prompt.tokens.map((token, index) => {
      const value = focus?.tokens[index] ?? 0;
      const said = focus ? `; ${focus.head} puts ${number(value)} of its attention on it` : "";
      const isLast = token.position === last;
      const what = isLast ? ", which says the first word of the answer" : "";
      return button(token.text.trim() || "␣", () => ui.change({ token: isLast ? null : token.position }), {
        className: token.role === "question" ? "" : "structural",
        "aria-pressed": String(token.position === looking), title: `position ${token.position}${what}${said}`,
        style: `--share:${Math.min(value, 1)}`, "data-position": token.position,
      });
    }));
  }
  return { element: make("section", { className: "asked" }, form, tokens, note), draw };
}
