"use strict";
// Draws the charts again when a reader zooms, switches series or chooses another axis. Geometry as in charts.py.
(() => {
  const LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 38, TICKS = 5, SVG = "http://www.w3.org/2000/svg";
  const LABELS = { epoch: "epoch", step: "step", time: "training time" };
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { axis: data.byEpoch ? "epoch" : "step", zoom: null, smooth: 0, hiddenRuns: new Set() };
  const live = [];

  // --- elements
  function html(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function svg(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }
  function toggle(label, pressed, change) {
    const button = html("button", { type: "button", "aria-pressed": String(pressed) }, label);
    button.addEventListener("click", () => {
      const next = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(next));
      change(next);
    });
    return button;
  }

  // Turns the keys of a legend into buttons that add a value to `hidden`, or remove it.
  function toggles(keys, values, hidden, changed) {
    keys.forEach((key, number) => {
      const button = toggle("", true, (on) => {
        if (on) hidden.delete(values[number]); else hidden.add(values[number]);
        changed();
      });
      button.className = key.className;
      button.append(...key.childNodes);
      key.replaceWith(button);
    });
  }

  // --- numbers
  const within = (value, low, high) => Math.min(Math.max(value, low), high);
  function short(value) {
    if (Math.abs(value) < 1e-12) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e");
    return Number(value.toPrecision(6)).toLocaleString("en", { maximumFractionDigits: 10 });
  }
  function shown(chart, value) {
    return chart.factor === 100 ? `${(100 * value).toFixed(2)} %` : short(Number(value.toPrecision(4)));
  }
  function timeUnit() {
    const longest = Math.max(0, ...data.positions.map((one) => one.time.at(-1) ?? 0));
    return longest > 7200 ? [3600, "h"] : longest > 180 ? [60, "min"] : [1, "s"];
  }
  const [timeFactor, timeName] = timeUnit();
  function positions(line) {
    const found = data.positions[line.positions];
    if (state.axis === "time") return found.time.map((value) => value / timeFactor);
    return found[state.axis] ?? found.step;
  }
  function smoothed(values, weight) {
    let sum = 0, total = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }
  function axis(low, high, start, end, log, most = TICKS) {
    if (!(high > low)) { const spare = Math.abs(low) * 0.05 || 1; low -= spare; high += spare; }
    const at = (value) => start + ((log ? Math.log10(Math.max(value, 1e-300)) : value) - low) / (high - low) * (end - start);
    const back = (place) => low + (place - start) / (end - start) * (high - low);
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
    if (log) step = Math.max(Math.round(step), 1);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++) ticks.push(log ? 10 ** (n * step) : n * step);
    return { low, high, at, back, ticks };
  }

  // --- one chart
  class Chart {
    constructor(chart, figure) {
      Object.assign(this, { chart, figure, log: chart.log, hidden: new Set(), cursor: null, drag: null });
      this.plot = figure.querySelector(".plot");
      const drawing = this.plot.querySelector("svg");
      this.title = drawing.querySelector("title").cloneNode(true);
      this.words = drawing.querySelector("desc").cloneNode(true);
      this.readout = html("p", { class: "readout", "aria-live": "polite" });
      this.plot.after(this.readout);
      this.plot.setAttribute("tabindex", "0");
      this.plot.setAttribute("role", "group");
      const keys = "Arrow keys read values, plus and minus zoom, Shift with arrow keys moves, 0 resets, L switches the logarithmic axis.";
      this.plot.setAttribute("aria-label", `${chart.title}. ${keys}`);
      this.addLegend();
      this.addTools();
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("pointerdown", (event) => this.down(event));
      this.plot.addEventListener("pointermove", (event) => this.move(event));
      this.plot.addEventListener("pointerup", (event) => this.up(event));
      this.plot.addEventListener("pointercancel", () => this.stop());
      this.plot.addEventListener("pointerleave", () => { if (!this.drag && document.activeElement !== this.plot) this.point(null); });
      this.plot.addEventListener("dblclick", () => zoom(null));
      this.plot.addEventListener("blur", () => this.point(null));
    }
    addLegend() {
      const labels = new Set(this.chart.lines.map((line) => line.label));
      toggles(this.figure.querySelectorAll(".legend .key"), [...labels], this.hidden, () => this.draw());
    }
    addTools() {
      this.logButton = toggle("log", this.log, (on) => { this.log = on; this.draw(); });
      this.logButton.setAttribute("aria-label", `Logarithmic axis of ${this.chart.title}`);
      const save = (kind) => html("button", { type: "button", "aria-label": `Save ${this.chart.title} as ${kind}`, onclick: () => this.save(kind) }, kind);
      this.figure.querySelector("figcaption").append(html("div", { class: "tools" }, this.logButton, save("SVG"), save("PNG")));
    }
    visible() {
      return this.chart.lines.filter((line) => !this.hidden.has(line.label) && !state.hiddenRuns.has(line.run));
    }
    range() {
      return [0, Math.max(...this.chart.lines.map((line) => positions(line).at(-1)))];
    }
    axes(width, height) {
      const [x0, x1] = state.zoom ?? this.range();
      let low = Infinity, high = -Infinity;
      for (const line of this.visible()) {
        const xs = positions(line);
        line.mean.forEach((value, number) => {
          if (value === null || xs[number] < x0 || xs[number] > x1 || (this.log && value <= 0)) return;
          low = Math.min(low, value * this.chart.factor);
          high = Math.max(high, value * this.chart.factor);
        });
      }
      if (this.chart.zero && !this.log) low = Math.min(low, 0);
      if (low > high) [low, high] = this.log ? [0.1, 1] : [0, 1];
      if (this.log) [low, high] = [Math.log10(low), Math.log10(high)];
      const spare = (high - low) * 0.05;
      return [axis(x0, x1, LEFT, width - RIGHT, false, width / 80), axis(low - spare, high + spare, height - BOTTOM, TOP, this.log)];
    }
    draw() {
      const width = Math.max(this.plot.clientWidth, 240), height = width < 460 ? 230 : 270, bottom = height - BOTTOM;
      const [x, y] = this.axes(width, height), id = `clip-${this.chart.id}`;
      Object.assign(this, { x, y, width, height });
      const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${this.title.id} ${this.words.id}` });
      drawing.append(this.title, this.words);
      const clip = svg("clipPath", { id });
      clip.append(svg("rect", { x: LEFT, y: TOP - 4, width: width - RIGHT - LEFT + 4, height: bottom - TOP + 8 }));
      drawing.append(clip);
      for (const value of y.ticks) {
        const at = y.at(value).toFixed(1);
        drawing.append(svg("path", { class: "grid", d: `M${LEFT} ${at}H${width - RIGHT}` }));
        drawing.append(svg("text", { x: LEFT - 8, y: Number(at) + 4, "text-anchor": "end" }, short(value)));
      }
      for (const value of x.ticks) {
        const at = x.at(value).toFixed(1);
        drawing.append(svg("path", { class: "grid", d: `M${at} ${bottom}v5` }));
        drawing.append(svg("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, short(value)));
      }
      drawing.append(svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${bottom}H${width - RIGHT}` }));
      const name = state.axis === "time" ? `${LABELS.time} (${timeName})` : LABELS[state.axis];
      drawing.append(svg("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, name));
      const curves = svg("g", { "clip-path": `url(#${id})` });
      for (const line of this.visible().sort((a, b) => b.strength - a.strength)) curves.append(this.line(line));
      for (const mark of data.marks.filter((one) => !state.hiddenRuns.has(one.run))) {
        const triangle = svg("path", { class: "mark", d: `M${this.x.at(positions(mark)[mark.at]).toFixed(1)} ${bottom - 9}l-5 9h10z` });
        triangle.append(svg("title", {}, mark.text));
        curves.append(triangle);
      }
      drawing.append(curves);
      this.marks = svg("g");
      drawing.append(this.marks);
      this.plot.replaceChildren(drawing);
      this.point(this.cursor);
    }
    line(line) {
      const xs = positions(line), group = svg("g", { class: line.style }), factor = this.chart.factor;
      const place = (value) => (value === null || (this.log && value <= 0) ? null : this.y.at(factor * value));
      const path = (values) => {
        let command = "M";
        return values.map((value, number) => {
          const at = place(value);
          if (at === null) { command = "M"; return ""; }
          const part = `${command}${this.x.at(xs[number]).toFixed(1)} ${at.toFixed(1)}`;
          command = "L";
          return part;
        }).join("");
      };
      const weight = line.markers ? 0 : state.smooth;
      if (line.low && !weight) {
        const known = xs.map((_, number) => number).filter((number) => line.low[number] !== null);
        const corner = (number, values) => `${this.x.at(xs[number]).toFixed(1)} ${within(place(values[number]) ?? this.height, TOP - 4, this.height - BOTTOM + 4).toFixed(1)}`;
        const ends = [...known.map((number) => corner(number, line.high)), ...known.reverse().map((number) => corner(number, line.low))];
        if (ends.length) group.append(svg("path", { class: "band", d: `M${ends.join("L")}Z` }));
      }
      for (const [number, low, high] of line.bars) {
        const [from, to] = [low, high].map((value) => within(place(value) ?? this.height, TOP, this.height - BOTTOM).toFixed(1));
        group.append(svg("path", { class: "bar", d: `M${this.x.at(xs[number]).toFixed(1)} ${from}V${to}` }));
      }
      if (weight) group.append(svg("path", { class: "line raw", d: path(line.mean) }));
      group.append(svg("path", { class: "line", d: path(weight ? smoothed(line.mean, weight) : line.mean) }));
      if (line.markers) xs.forEach((value, number) => {
        const at = place(line.mean[number]);
        if (at !== null) group.append(svg("circle", { cx: this.x.at(value).toFixed(1), cy: at.toFixed(1), r: 2.6 }));
      });
      return group;
    }
    // The values at the point of each curve that is nearest to x; null: no cursor.
    point(at) {
      this.cursor = at;
      this.marks.replaceChildren();
      if (at === null) { this.readout.textContent = ""; return; }
      const place = this.x.at(at);
      this.marks.append(svg("path", { class: "cursor", d: `M${place.toFixed(1)} ${TOP}V${this.height - BOTTOM}` }));
      const texts = this.visible().map((line) => {
        const xs = positions(line);
        let best = null;
        xs.forEach((value, number) => {
          if (line.mean[number] !== null && (best === null || Math.abs(value - at) < Math.abs(xs[best] - at))) best = number;
        });
        if (best === null) return "";
        const y = this.y.at(this.chart.factor * line.mean[best]);
        if (y > TOP - 5 && y < this.height - BOTTOM + 5) {
          const mark = svg("g", { class: line.style });
          mark.append(svg("circle", { cx: this.x.at(xs[best]).toFixed(1), cy: y.toFixed(1), r: 4 }));
          this.marks.append(mark);
        }
        return `${line.name} ${shown(this.chart, line.mean[best])}`;
      });
      const unit = state.axis === "time" ? `${short(Number(at.toPrecision(4)))} ${timeName}` : `${state.axis} ${short(Number(at.toPrecision(4)))}`;
      this.readout.textContent = [unit, ...texts.filter(Boolean)].join(" · ");
    }
    steps() {
      const all = new Set(this.visible().flatMap((line) => positions(line)));
      return [...all].filter((value) => value >= this.x.low && value <= this.x.high).sort((a, b) => a - b);
    }
    key(event) {
      if (event.target !== this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
      const { low, high } = this.x, span = high - low, around = this.cursor ?? (low + high) / 2;
      const known = this.steps(), right = event.key === "ArrowRight";
      if (event.key === "ArrowLeft" || right) {
        if (event.shiftKey) zoom([low + (right ? span : -span) / 4, high + (right ? span : -span) / 4], this.range());
        else if (known.length) {
          const next = right ? known.find((value) => value > (this.cursor ?? -Infinity)) : known.findLast((value) => value < (this.cursor ?? Infinity));
          this.point(next ?? this.cursor);
        }
      } else if (event.key === "Home" || event.key === "End") this.point(known.at(event.key === "Home" ? 0 : -1) ?? null);
      else if (event.key === "+" || event.key === "=") zoom([around - (around - low) / 2, around + (high - around) / 2], this.range());
      else if (event.key === "-") zoom([around - (around - low) * 2, around + (high - around) * 2], this.range());
      else if (event.key === "0" || event.key === "Escape") zoom(null);
      else if (event.key === "l" || event.key === "L") this.logButton.click();
      else return;
      event.preventDefault();
    }
    at(event) {
      const box = this.plot.getBoundingClientRect();
      return within((event.clientX - box.left) * this.width / box.width, LEFT, this.width - RIGHT);
    }
    down(event) {
      if (event.button !== 0) return;
      this.drag = { from: this.at(event), pick: svg("rect", { class: "pick", y: TOP, height: this.height - BOTTOM - TOP, width: 0 }) };
      this.plot.setPointerCapture(event.pointerId);
    }
    move(event) {
      const to = this.at(event);
      this.point(this.x.back(to));
      if (!this.drag) return;
      this.drag.pick.setAttribute("x", Math.min(to, this.drag.from));
      this.drag.pick.setAttribute("width", Math.abs(to - this.drag.from));
      this.marks.append(this.drag.pick);
    }
    up(event) {
      if (!this.drag) return;
      const ends = [this.drag.from, this.at(event)].sort((a, b) => a - b);
      this.stop();
      if (ends[1] - ends[0] > 8) zoom(ends.map((place) => this.x.back(place)), this.range());
    }
    stop() { this.drag?.pick.remove(); this.drag = null; }
    // The drawing with a title and a legend, on white, as a file.
    async save(kind) {
      document.documentElement.classList.add("light");
      const source = this.plot.querySelector("svg"), made = source.cloneNode(true), lines = this.visible();
      const inlined = [source, ...source.querySelectorAll("*")], copies = [made, ...made.querySelectorAll("*")];
      const names = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size"];
      copies.forEach((copy, number) => {
        const style = getComputedStyle(inlined[number]);
        for (const name of names) copy.setAttribute(name, style.getPropertyValue(name));
      });
      const colours = lines.map((line) => {
        const probe = html("i", { class: line.style });
        document.body.append(probe);
        const found = getComputedStyle(probe).color;
        probe.remove();
        return found;
      });
      document.documentElement.classList.remove("light");
      made.querySelectorAll(".cursor").forEach((one) => one.parentNode.remove());
      const head = 26, rows = 20 * lines.length + 8, height = this.height + head + rows, width = this.width;
      const whole = svg("svg", { xmlns: SVG, viewBox: `0 0 ${width} ${height}`, width, height });
      whole.append(svg("rect", { width, height, fill: "#ffffff" }));
      const font = { "font-family": "sans-serif", fill: "#1b1f24" };
      whole.append(svg("text", { ...font, x: 8, y: 18, "font-size": 15, "font-weight": "bold" }, this.chart.unit ? `${this.chart.title} (${this.chart.unit})` : this.chart.title));
      for (const [key, value] of Object.entries({ x: 0, y: head, width, height: this.height })) made.setAttribute(key, value);
      whole.append(made);
      lines.forEach((line, number) => {
        const y = head + this.height + 20 * number + 12;
        whole.append(svg("path", { d: `M12 ${y}h26`, stroke: colours[number], "stroke-width": line.strength === 2 ? 1.1 : 2, "stroke-dasharray": line.strength === 1 ? "6 3" : "none" }));
        whole.append(svg("text", { ...font, x: 46, y: y + 4, "font-size": 12 }, line.name));
      });
      const text = new XMLSerializer().serializeToString(whole), address = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
      if (kind === "SVG") { download(new Blob([text], { type: "image/svg+xml" }), `${this.chart.id}.svg`); return; }
      const image = new Image();
      image.src = address;
      await image.decode();
      const canvas = html("canvas", { width: 2 * width, height: 2 * height });
      canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
      canvas.toBlob((blob) => download(blob, `${this.chart.id}.png`));
    }
  }
  function download(blob, name) {
    const address = URL.createObjectURL(blob);
    html("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  // --- all charts
  const drawAll = () => live.forEach((chart) => chart.draw());
  function zoom(range, whole) {
    if (range && whole) {
      range = range.map((value) => within(value, ...whole));
      const least = (whole[1] - whole[0]) / 1e4;
      if (range[1] - range[0] < least || (range[0] <= whole[0] && range[1] >= whole[1])) range = range[1] - range[0] < least ? state.zoom : null;
    }
    state.zoom = range;
    drawAll();
  }
  function addTools() {
    const tools = document.getElementById("tools");
    const names = Object.keys(LABELS).filter((name) => name !== "epoch" || data.byEpoch);
    const axisButtons = names.map((name) => html("button", { type: "button", "aria-pressed": String(name === state.axis), onclick: (event) => {
      axisButtons.forEach((one) => one.setAttribute("aria-pressed", String(one === event.currentTarget)));
      state.axis = name;
      live.forEach((chart) => { chart.cursor = null; });
      zoom(null);
    } }, LABELS[name]));
    tools.append(html("fieldset", {}, html("legend", {}, "Axis"), ...axisButtons));
    const options = [["none", 0], ["some", 0.6], ["more", 0.9], ["most", 0.97]].map(([name, value]) => html("option", { value }, name));
    const select = html("select", { onchange: (event) => { state.smooth = Number(event.target.value); drawAll(); } }, ...options);
    tools.append(html("label", {}, "Smoothing ", select));
    tools.append(html("button", { type: "button", onclick: () => zoom(null) }, "Reset zoom"));
    toggles(document.querySelectorAll("#runs .key"), data.runs.map((_, number) => number), state.hiddenRuns, drawAll);
    tools.append(html("span", { class: "note" }, "Drag over a chart to zoom; double-click or 0 resets."));
    tools.hidden = false;
  }
  if (data.charts.length) {
    document.documentElement.classList.add("js");
    addTools();
    for (const chart of data.charts) live.push(new Chart(chart, document.getElementById(`chart-${chart.id}`)));
    drawAll();
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { if (!one.open) { one.open = true; one.dataset.closed = ""; } }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-closed]").forEach((one) => { one.open = false; delete one.dataset.closed; }));
})();
