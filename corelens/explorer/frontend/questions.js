// The prompt: samples, uploaded pictures, a question, and the query token.

function gallerySection(ui) {
  const choose = (sample) =>
    ui.change({ sample, pictures: [], question: null, evidence: null, regions: [], token: null });
  const items = ui.about.gallery.map(({ id, question, src }) => button(
    src ? make("img", { src, alt: question }) : question, () => choose(id), { title: question, "data-sample": id }));
  const upload = button("Your picture", () => ui.pick(), {
    className: "own", title: "Ask about pictures of your own; they can also be dropped here",
  });
  const element = make("nav", { className: "gallery", "aria-label": "Samples" }, ...items, upload);
  return {
    element,
    draw() {
      for (const item of [...items, upload]) {
        const isChosen = item === upload ? ui.state.pictures.length > 0 : item.dataset.sample === ui.state.sample;
        item.setAttribute("aria-current", String(isChosen));
      }
    },
  };
}

function questionSection(ui) {
  const input = make("input", {
    type: "text", placeholder: "Ask about the picture", "aria-label": "Question", maxLength: 2000,
    title: "A question about the picture",
  });
  const note = make("p", { className: "note", role: "status" });
  const tokens = make("div", { className: "tokens", role: "group", "aria-label": "Query token" });
  const form = make("form", {
    onsubmit: (event) => {
      event.preventDefault();
      const sample = ui.about.gallery.find(({ id }) => id === ui.state.sample);
      const question = sample && input.value === sample.question ? null : input.value;
      ui.change({ question, token: null, evidence: null });
    },
  }, input, make("button", { type: "submit", title: "Answer this question" }, "Ask"));
  let shownQuestion = null;

  function draw() {
    const question = ui.prompt?.question ?? ui.state.question ?? "";
    if (question !== shownQuestion) input.value = shownQuestion = question; // what is being typed stays
    note.textContent = ui.prompt?.note ?? "";
    note.hidden = !note.textContent;
    if (!ui.current) return;
    const [focus] = ui.view.maps;
    const last = ui.prompt.tokens.at(-1).position;
    const { query } = ui.view;
    refill(tokens, span("quiet", "attention from"), ...ui.prompt.tokens.map((token, index) => {
      const value = focus?.tokens[index] ?? 0;
      const attention = focus ? `; ${focus.head} puts ${number(value)} of its attention on it` : "";
      const isLast = token.position === last;
      const role = isLast ? ", which predicts the first token of the answer" : "";
      return button(token.text.trim() || "␣", () => ui.change({ token: isLast ? null : token.position }), {
        className: token.role === "question" ? "" : "structural",
        "aria-pressed": String(token.position === query), title: `position ${token.position}${role}${attention}`,
        style: `--share:${Math.min(value, 1)}`, "data-position": token.position,
      });
    }));
  }
  return { element: make("section", { className: "prompt" }, form, tokens, note), draw };
}
