"use strict";
// The plots follow the page: its colours by day and by night, its switches, the pointer and the keys. All text is set as
// text, never as HTML.
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const images = data.images;
  const find = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const plots = {};

  for (const [place, item] of Object.entries(data.plots)) {
    await Bokeh.embed.embed_item(item);
    plots[place] = Bokeh.documents[Bokeh.documents.length - 1].roots()[0];
  }

  // Colours

  function dress(plot) {
    const [ink, soft, line] = ["ink", "soft", "line"].map(colour);
    for (const axis of [...plot.left, ...plot.below]) {
      if (!("major_label_text_color" in axis)) continue;
      axis.setv({
        axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null,
        major_label_text_color: soft, axis_label_text_color: soft, axis_label_text_font_style: "normal",
        axis_label_text_font_size: "12px", major_label_text_font_size: "12px",
      });
    }
    for (const grid of plot.center) if ("grid_line_color" in grid) grid.grid_line_color = line;
    for (const renderer of plot.renderers) {
      const number = Number(/\d*$/.exec(renderer.name)[0]);
      const tone = colour(["good", "wrong"][number] || `c${number % 10}`);
      if (renderer.name.startsWith("line")) renderer.glyph.line_color = tone;
      if (renderer.name.startsWith("dots")) renderer.glyph.fill_color = tone;
      if (renderer.name === "links") renderer.glyph.line_color = soft;
      if (renderer.name === "rings") renderer.glyph.line_color = ink;
    }
    for (const level of plot.center) if (level.name === "level") level.line_color = colour("chance");
  }

  function dressAll() {
    Object.values(plots).forEach(dress);
    if (map) paint();
  }

  // Curves

  for (const input of all("input[name=against]")) {
    input.addEventListener("change", () => {
      for (const [place, plot] of Object.entries(plots)) {
        if (!place.startsWith("curve-")) continue;
        for (const renderer of plot.renderers) renderer.glyph.x = { field: input.value };
        plot.below[0].axis_label = input.value;
        const reach = Math.max(...plot.renderers.flatMap((r) => [...r.data_source.data[input.value]]));
        plot.x_range.setv({ start: 0, end: 1.03 * reach || 1 });
      }
    });
  }

  // The map

  const map = plots["map-plot"];
  const state = { map: null, show: "points", colour: "group", group: null, wrong: false, held: false, at: -1 };
  const anchors = {}; // of the names, for each map
  const source = map && map.renderers.find((r) => r.name === "points").data_source;
  const wrong = (i) => images.labelled && images.predicted !== null && images.predicted[i] !== images.group[i];
  const seen = (i) => (state.group === null || images.group[i] === state.group) && (!state.wrong || wrong(i));
  const x = () => source.data[`${state.map}_x`];
  const y = () => source.data[`${state.map}_y`];

  function mix(low, high, share) {
    const parts = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    const [a, b] = [parts(low), parts(high)];
    return `rgb(${a.map((value, k) => Math.round(value + share * (b[k] - value))).join(",")})`;
  }

  function shades() {
    if (state.colour === "right") {
      const [mute, bad] = [colour("mute"), colour("wrong")];
      return (i) => (wrong(i) ? bad : mute);
    }
    if (state.colour === "sure") {
      const steps = Array.from({ length: 21 }, (_, k) => mix(colour("low"), colour("high"), k / 20));
      return (i) => steps[Math.round(20 * images.sure[i])];
    }
    const classes = Array.from({ length: 10 }, (_, k) => colour(`c${k}`));
    return (i) => classes[images.group[i] % 10];
  }

  function paint() {
    const shade = shades();
    const [fill, alpha] = [[], []];
    for (let i = 0; i < images.points; i++) {
      fill.push(shade(i));
      alpha.push(seen(i) ? 0.85 : 0.05);
    }
    source.data = { ...source.data, fill, alpha };
    legend();
    look(state.at);
    cover();
  }

  function where(i) {
    // The place of point i within the frame, in pixels.
    const [frame, inner] = [find("map-frame"), find("map-plot")].map((element) => element.getBoundingClientRect());
    const rim = (inner.height - map.inner_height) / 2; // Bokeh's own
    const [sx, sy] = [map.inner_width / (map.x_range.end - map.x_range.start), map.inner_height / (map.y_range.end - map.y_range.start)];
    const [left, top] = [inner.left - frame.left + rim, inner.top - frame.top + rim];
    const [xs, ys] = [x(), y()];
    const at = (k) => [left + (xs[k] - map.x_range.start) * sx, top + (map.y_range.end - ys[k]) * sy];
    return i === undefined ? at : at(i);
  }

  let waiting = false;
  function cover() {
    // Lay the names or the pictures over the points, once for all that changes before the next frame.
    if (waiting || !state.map) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const on = { images, seen, where: where(), group: state.group, wide: map.inner_width, high: map.inner_height };
      find("layer").replaceChildren(...(state.show === "pictures" ? overlay.pictures(on, laid) : names(on)));
    });
  }

  function names(on) {
    if (state.colour !== "group" || !images.labelled || images.groups.length > overlay.NAMED) return [];
    anchors[state.map] ??= overlay.anchors(images, [...x()], [...y()]);
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `600 ${on.wide < 500 ? 12 : 14}px ${getComputedStyle(document.body).fontFamily}`;
    return overlay.names({ ...on, width: (name) => pen.measureText(name).width }, anchors[state.map], make);
  }

  function laid(i, left, top, side) {
    const made = make("div", "pic");
    place(made, i);
    made.style.setProperty("--w", `${side}px`);
    made.style.left = `${left}px`;
    made.style.top = `${top}px`;
    made.style.boxShadow = `0 0 0 2px ${source.data.fill[i]}`;
    return made;
  }

  function legend() {
    const scale = find("scale");
    scale.hidden = state.colour === "group";
    if (state.colour === "sure") scale.replaceChildren("0 %", make("i"), "100 % sure");
    if (state.colour === "right") scale.replaceChildren(dot("mute"), "right", dot("wrong"), "wrong");
  }

  function dot(name) {
    const made = make("span", "dot");
    made.style.background = `var(--${name})`;
    return made;
  }

  function fit() {
    // The same scale along both axes: the points' bounds, widened to the shape of the frame.
    const reach = (values) => {
      let [low, high] = [Infinity, -Infinity];
      for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
      return [(low + high) / 2, (high - low) / 2 || 1];
    };
    const [[cx, rx], [cy, ry]] = [reach(x()), reach(y())];
    const [w, h] = [map.inner_width || 600, map.inner_height || 500];
    const unit = 1.06 * Math.max(rx / w, ry / h);
    for (const [range, centre, side] of [[map.x_range, cx, w], [map.y_range, cy, h]]) {
      const [start, end] = [centre - unit * side, centre + unit * side];
      range.setv({ start, end, reset_start: start, reset_end: end });
    }
  }

  function choose(name) {
    state.map = name;
    const glyph = map.renderers.find((r) => r.name === "points").glyph;
    glyph.setv({ x: { field: `${name}_x` }, y: { field: `${name}_y` } });
    fit();
    look(state.at);
    cover();
  }

  function nearest(px, py, most = 14) {
    // The nearest point that is seen, at most so many pixels away; -1 if there is none.
    if (state.show === "pictures") most = Math.max(most, 0.6 * overlay.side({ images, wide: map.inner_width, high: map.inner_height }));
    const [sx, sy] = [map.inner_width / (map.x_range.end - map.x_range.start),
      map.inner_height / (map.y_range.end - map.y_range.start)];
    const [xs, ys] = [x(), y()];
    let [found, best] = [-1, most * most];
    for (let i = 0; i < images.points; i++) {
      if (!seen(i)) continue;
      const far = ((xs[i] - px) * sx) ** 2 + ((ys[i] - py) * sy) ** 2;
      if (far < best) [found, best] = [i, far];
    }
    return found;
  }

  function look(i) {
    // Show image i: its rings and lines on the map, its picture beside the point, and its card.
    const moved = i !== state.at;
    state.at = i;
    const others = i < 0 ? [] : images.near[i].slice(0, 6);
    const [xs, ys, fill] = [x(), y(), source.data.fill];
    const ring = i < 0 ? [] : [...others, i];
    const data_of = (name) => map.renderers.find((r) => r.name === name).data_source;
    data_of("rings").data = {
      x: ring.map((k) => xs[k]), y: ring.map((k) => ys[k]), fill: ring.map((k) => fill[k]),
      size: ring.map((k) => (k === i ? 15 : 9)),
    };
    data_of("links").data = {
      x0: others.map(() => xs[i]), y0: others.map(() => ys[i]), x1: others.map((k) => xs[k]), y1: others.map((k) => ys[k]),
    };
    peek(i);
    if (moved) card(i);
  }

  function peek(i) {
    const box = find("peek");
    box.hidden = i < 0;
    if (i < 0) return;
    place(box, i);
    const frame = find("map-frame").getBoundingClientRect();
    const [left, top] = where(i);
    const side = left + 110 > frame.width ? left - 98 : left + 18;
    box.style.left = `${Math.max(2, side)}px`;
    box.style.top = `${Math.min(Math.max(2, top - 40), frame.height - box.offsetHeight - 2)}px`;
  }

  function make(tag, kind = "", text = null) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== null) made.textContent = text;
    return made;
  }

  function place(element, i) {
    element.style.setProperty("--x", i % images.columns);
    element.style.setProperty("--y", Math.floor(i / images.columns));
    element.dataset.shows = i;
  }

  function picture(i) {
    const made = make("button", "pic");
    place(made, i);
    made.type = "button";
    made.dataset.image = i;
    made.setAttribute("aria-label", `${images.groups[images.group[i]]}: ${images.ids[i]}`);
    return made;
  }

  function facts(i) {
    // What is known of image i, as a list of names and texts.
    const list = make("dl");
    const say = (name, text, kind = "", more = "") => {
      const told = make("dd", kind);
      told.append(make("bdi", "", text), more); // a name may be written from right to left
      list.append(make("dt", "", name), told);
    };
    say(images.labelled ? "class" : "cluster", images.groups[images.group[i]]);
    if (images.predicted !== null) {
      const sure = images.sure === null ? "" : `, ${(100 * images.sure[i]).toFixed(0)} % sure`;
      say("probe", images.groups[images.predicted[i]], "", sure + (wrong(i) ? ": wrong" : ""));
    }
    say("image", images.ids[i], "soft");
    return list;
  }

  function nearby(i) {
    // The nearest images of image i, with their cosines; of those that are no points of the map they are not known.
    const below = make("div", "near");
    if (i >= images.points) return below;
    const near = make("ul", "pics near");
    images.near[i].forEach((k, rank) => {
      const item = make("li", images.labelled && images.group[k] !== images.group[i] ? "other" : "");
      item.append(picture(k), make("span", "soft", images.cosine[i][rank].toFixed(2)));
      near.append(item);
    });
    below.append(make("h3", "", "Nearest, by cosine"), near);
    return below;
  }

  function card(i) {
    if (i >= 0) find("face").replaceChildren(picture(i), facts(i), nearby(i));
  }

  function step(key) {
    // The seen point that is nearest in the direction of an arrow key.
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key];
    const [xs, ys, i] = [x(), y(), state.at];
    let [found, best] = [i, Infinity];
    for (let k = 0; k < images.points; k++) {
      if (k === i || !seen(k)) continue;
      if (i < 0) return k;
      const [ahead, aside] = [(xs[k] - xs[i]) * dx + (ys[k] - ys[i]) * dy, (xs[k] - xs[i]) * dy - (ys[k] - ys[i]) * dx];
      if (ahead > Math.abs(aside) && ahead + Math.abs(aside) < best) [found, best] = [k, ahead + Math.abs(aside)];
    }
    return found;
  }

  function hold(i) {
    state.held = i >= 0;
    look(i);
  }

  function isolate(group) {
    state.group = state.group === group ? null : group;
    for (const chip of all(".chip")) chip.setAttribute("aria-pressed", Number(chip.dataset.group) === state.group);
    find("chips").classList.toggle("one", state.group !== null);
    paint();
  }

  if (map) {
    all("input[name=map]").forEach((input) => input.addEventListener("change", () => choose(input.value)));
    all("input[name=show]").forEach((input) => input.addEventListener("change", () => { state.show = input.value; cover(); }));
    state.show = document.querySelector("input[name=show]:checked").value;
    all("input[name=colour]").forEach((input) => input.addEventListener("change", () => {
      state.colour = input.value;
      paint();
    }));
    const box = find("wrong");
    if (box) box.addEventListener("change", () => { state.wrong = box.checked; paint(); });
    all(".chip").forEach((chip) => chip.addEventListener("click", () => isolate(Number(chip.dataset.group))));
    map.on_event("mousemove", (event) => { if (!state.held) look(nearest(event.x, event.y)); });
    map.on_event("mouseleave", () => { if (!state.held) look(-1); });
    map.on_event("tap", (event) => hold(nearest(event.x, event.y, 22)));
    for (const range of [map.x_range, map.y_range]) range.change.connect(() => { peek(state.at); cover(); });
    find("map-frame").addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) { event.preventDefault(); look(step(event.key)); }
      if (event.key === "Enter") hold(state.at);
      if (event.key === "Escape") hold(-1);
    });
    document.addEventListener("click", (event) => {
      const image = event.target.closest("[data-image]");
      if (!image) return;
      const i = Number(image.dataset.image);
      if (image.closest("#face .near")) hold(i);
      else enlarge(i, image.closest("#zoom") ? [i] : all("[data-image]", image.closest("ul, #face")).map((e) => Number(e.dataset.image)));
    });
    if (matchMedia("(pointer: coarse)").matches) map.toolbar.active_drag = null;
    let width = 0;
    const glyph = map.renderers.find((r) => r.name === "points").glyph;
    const size = glyph.size.value;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      map.height = width < 500 ? 400 : 560;
      glyph.size = { value: width < 500 ? 0.65 * size : size };
      setTimeout(() => { fit(); peek(state.at); cover(); }, 60); // when Bokeh has laid the plot out anew
    }).observe(find("map-plot"));
    choose(document.querySelector("input[name=map]:checked").value);
    card(0);
  }

  // An image, enlarged: the arrow keys go along the row that it stands in, Escape closes it

  const zoom = find("zoom");
  const row = { images: [], at: 0 };

  function enlarge(i, among) {
    [row.images, row.at] = [among, Math.max(0, among.indexOf(i))];
    turn(0);
    if (!zoom.open) zoom.showModal();
  }

  function turn(steps) {
    row.at = Math.min(row.images.length - 1, Math.max(0, row.at + steps));
    const i = row.images[row.at];
    const large = make("div", "pic");
    place(large, i);
    large.setAttribute("role", "img");
    large.setAttribute("aria-label", images.ids[i]);
    find("zoom-what").replaceChildren(large, facts(i), nearby(i));
    find("zoom-before").disabled = row.at === 0;
    find("zoom-after").disabled = row.at === row.images.length - 1;
    find("zoom-map").hidden = i >= images.points;
  }

  if (zoom) {
    find("zoom-close").addEventListener("click", () => zoom.close());
    find("zoom-before").addEventListener("click", () => turn(-1));
    find("zoom-after").addEventListener("click", () => turn(1));
    find("zoom-map").addEventListener("click", () => {
      zoom.close();
      hold(row.images[row.at]);
      find("maps").scrollIntoView();
    });
    zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
    zoom.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
    });
  }

  // The confusion matrix

  for (const button of all(".confusion button:not(:disabled)")) {
    button.addEventListener("click", () => {
      const [true_, said] = [Number(button.dataset.true), Number(button.dataset.said)];
      const found = images.group.map((_, i) => i).filter((i) => images.group[i] === true_ && images.predicted[i] === said);
      all(".confusion button").forEach((other) => other.setAttribute("aria-pressed", other === button));
      const list = make("ul", "pics");
      found.slice(0, 40).forEach((i) => { const item = make("li"); item.append(picture(i)); list.append(item); });
      const count = `${button.getAttribute("aria-label")}. `;
      const [shown, held] = [Math.min(40, found.length), found.length];
      const some = held === 0 ? "None of them is among the images of this page."
        : shown < held ? `Here are ${shown} of the ${held} that this page holds.` : "";
      find("cell").replaceChildren(make("p", "", count + some), list);
      find("cell").hidden = false;
    });
  }

  addEventListener("beforeprint", () => all("details").forEach((part) => { part.open = true; }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dressAll);
  dressAll();
  document.documentElement.dataset.ready = "yes";
})();
