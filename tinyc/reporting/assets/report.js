"use strict";
// The linked panes of a report. Everything static is in the HTML already; this adds what moves:
// a computation (a member of a kernel) is highlighted wherever it appears, code is shown for the
// selected kernel, tables sort and filter, the graph zooms, opens and shows what was before fusion.
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const content = (id) => document.getElementById(id).textContent;

  const report = JSON.parse(content("data"));
  const drawings = JSON.parse(content("drawing"));
  const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5195"];
  const LONGEST = 1500; // lines of a diff that are shown at once
  const SVG = "http://www.w3.org/2000/svg";

  document.documentElement.classList.add("js");

  function make(name, className, text) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function draw(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // The long texts, gunzipped by the browser and put into the report's data.
  async function unpack() {
    const bytes = Uint8Array.from(atob(content("texts")), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const texts = JSON.parse(await new Response(stream).text());
    const lines = (numbers) => numbers.map((number) => texts.lines[number]);
    texts.programs.forEach((heavy, i) => {
      const program = report.programs[i];
      for (const item of [...heavy.kernels, ...heavy.helpers]) {
        item.coloured = lines(item.coloured);
        if (item.asm) item.asm = lines(item.asm[0]).map((text, j) => [text, item.asm[1][j]]);
      }
      for (const part of ["nodes", "edges", "helpers"]) program[part] = heavy[part];
      for (const part of ["kernels", "passes"]) {
        heavy[part].forEach((item, j) => Object.assign(program[part][j], item));
      }
    });
  }

  // -- what belongs together ---------------------------------------------------------------------

  // A focus is what is highlighted: sets of kernels, members and lines, and perhaps one wire.
  const focusOn = (kernels = [], members = [], lines = [], wire = null) => ({
    kernels: new Set(kernels), members: new Set(members), lines: new Set(lines), wire,
  });
  const lineKey = (line) => (line ? `${line[0]}:${line[1]}` : null);

  class View {
    constructor(section, program, drawing) {
      Object.assign(this, { section, program, drawing, pinned: null, shown: null, kernel: null });
      this.opened = new Set();
      this.zoom = 1;
      this.members = new Map();
      this.byLine = new Map();
      this.byNode = new Map();
      for (const kernel of program.kernels) {
        for (const member of kernel.members) {
          this.members.set(member.name, { ...member, kernel: kernel.index });
          push(this.byLine, lineKey(member.line), member.name);
          for (const node of member.nodes || []) push(this.byNode, node, member.name);
        }
      }
      this.kernelsOfLine = new Map();
      for (const kernel of program.kernels) {
        for (const line of kernel.lines) push(this.kernelsOfLine, lineKey(line), kernel.index);
      }
      // a wire is thin; this is what the pointer meets
      for (const line of all(".wire .line", this.graph)) {
        line.before(draw("path", { class: "hit", d: line.getAttribute("d") }));
      }
      this.collect();
      this.code = [];
      this.boxes = new Map(all(".box", this.graph).map((box) => [Number(box.dataset.k), box]));
      this.listen();
      this.rove();
    }

    get graph() { return find("svg.graph:not(.unfused)", this.section); }
    get canvas() { return find(".canvas", this.section); }
    pane(name) { return find(`.pane.${name} .body`, this.section); }

    collect() {
      const linked = "[data-k],[data-member],[data-line],[data-from],[data-span],[data-node]";
      this.linked = all(linked, this.section).filter((element) => !element.closest(".code.text"));
    }

    // The focus that an element stands for.
    focusOf(element) {
      const { k, member, line, from, to, span, node } = element.dataset;
      if (member !== undefined) return this.ofMembers([member]);
      if (node !== undefined) {
        const names = this.byNode.get(Number(node));
        return names ? this.ofMembers(names) : this.ofKernel(Number(k));
      }
      if (k !== undefined) return this.ofKernel(Number(k));
      if (line !== undefined) return this.ofLine(line);
      if (from !== undefined) return focusOn([Number(from), Number(to)], [], [], `${from} ${to}`);
      return focusOn([Number(span.split(" ")[0])]);
    }

    ofKernel(index) {
      const kernel = this.program.kernels[index];
      const lines = [...kernel.lines, ...kernel.members.map((m) => m.line)].map(lineKey);
      return { ...focusOn([index], kernel.members.map((m) => m.name), lines), whole: true };
    }

    ofMembers(names) {
      const members = names.map((name) => this.members.get(name)).filter(Boolean);
      return focusOn(members.map((m) => m.kernel), names, members.map((m) => lineKey(m.line)));
    }

    ofLine(line) {
      const names = this.byLine.get(line) || [];
      const kernels = [...names.map((n) => this.members.get(n).kernel),
        ...(this.kernelsOfLine.get(line) || [])];
      return focusOn(kernels, names, [line]);
    }

    holds(element, focus) {
      const { k, member, line, from, to, span, node } = element.dataset;
      if (member !== undefined) return !focus.whole && focus.members.has(member);
      if (node !== undefined) {
        const names = this.byNode.get(Number(node));
        return names ? names.some((name) => focus.members.has(name)) : focus.kernels.has(Number(k));
      }
      if (k !== undefined) return focus.kernels.has(Number(k));
      if (line !== undefined) return focus.lines.has(line);
      if (from !== undefined) {
        if (focus.wire) return focus.wire === `${from} ${to}`;
        return focus.kernels.size === 1
          && (focus.kernels.has(Number(from)) || focus.kernels.has(Number(to)));
      }
      return focus.kernels.size === 1 && focus.kernels.has(Number(span.split(" ")[0]));
    }

    mark(name, focus) {
      for (const element of this.linked) {
        element.classList.toggle(name, Boolean(focus) && this.holds(element, focus));
      }
      // the code is that of one kernel: marking all of it says nothing
      const part = focus && !focus.whole;
      for (const row of this.code) row.classList.toggle(name, Boolean(part) && this.holds(row, focus));
    }

    // -- selecting -------------------------------------------------------------------------------

    listen() {
      let wait = 0;
      const target = (event) => {
        const found = event.target.closest?.(
          "[data-member],[data-node],[data-k],[data-line],[data-from],[data-span]");
        return found && this.section.contains(found) ? found : null;
      };
      this.section.addEventListener("mouseover", (event) => {
        const element = target(event);
        clearTimeout(wait);
        wait = setTimeout(() => this.hover(element), 40);
      });
      this.section.addEventListener("mouseleave", () => this.hover(null));
      this.section.addEventListener("focusin", (event) => {
        const element = target(event);
        if (element && event.target.matches(":focus-visible")) this.hover(element);
      });
      this.section.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (button && !button.classList.contains("pick")) return;
        if (this.dragged) { event.preventDefault(); return; }
        const element = target(event);
        if (!element) return;
        if (event.target.closest("a")) event.preventDefault();
        const link = event.target.closest(".boundary a");
        if (link) this.select(Number(link.hash.split("-k")[1]));
        else this.pin(this.focusOf(element), element);
      });
      this.section.addEventListener("dblclick", (event) => {
        const box = event.target.closest(".box");
        if (box && box.dataset.node === undefined) this.expand(Number(box.dataset.k));
      });
      this.section.addEventListener("keydown", (event) => this.key(event));
    }

    hover(element) {
      const focus = element ? this.focusOf(element) : null;
      const inCode = element?.closest(".pane.loops, .pane.source, .pane.asm");
      if (focus && !inCode && focus.kernels.size === 1) this.show([...focus.kernels][0]);
      else if (!focus && this.kernel !== null) this.show(this.kernel);
      this.mark("hot", focus);
    }

    pin(focus, from) {
      this.pinned = focus;
      const kernels = [...focus.kernels];
      if (focus.wire && from.matches(".wire")) this.openBoundary(from.getAttribute("href").slice(1));
      if (kernels.length) {
        if (!kernels.includes(this.kernel)) this.kernel = kernels[0];
        this.show(this.kernel);
        history.replaceState(null, "", focus.wire && from.id ? `#${from.id}`
          : `#${this.section.id}-k${this.kernel}`);
      }
      this.mark("pinned", focus);
      this.reveal(from);
      this.rove();
    }

    select(index) {
      this.kernel = index;
      this.pin(this.ofKernel(index), this.section);
    }

    release() {
      this.pinned = null;
      this.mark("pinned", null);
      this.mark("hot", null);
    }

    // Scroll each pane to what is selected in it, but the one that was clicked.
    reveal(from) {
      for (const body of all(".pane .body", this.section)) {
        if (body.contains(from)) continue;
        const first = all(".pinned:not(.wire)", body).find((e) => e.getClientRects().length);
        if (!first) continue;
        const place = first.getBoundingClientRect(), frame = body.getBoundingClientRect();
        body.scrollTop += place.top - frame.top - frame.height / 3;
        if (body.matches(".canvas")) body.scrollLeft += place.left - frame.left - frame.width / 3;
      }
    }

    // Begin where the first line is that the program comes from.
    showFirstLine() {
      const body = this.pane("lines"), first = find("[data-line]", body);
      if (!first) return;
      body.scrollTop += first.getBoundingClientRect().top - body.getBoundingClientRect().top - 60;
    }

    openBoundary(id) {
      const entry = document.getElementById(id);
      this.filterBoundaries("", null);
      entry.scrollIntoView({ block: "center" });
      entry.focus({ preventScroll: true });
    }

    // -- code ------------------------------------------------------------------------------------

    show(index) {
      const kernel = this.program.kernels[index];
      if (kernel.source === undefined || this.shown === index) return;
      this.shown = index;
      this.code = [];
      const hues = new Map(kernel.members.map((m, i) => [m.name, HUES[i % HUES.length]]));
      const owner = new Map((kernel.source_lines || []).filter(([, name]) => name));
      // a comment names the member; tiles and packed panels are numbered by contraction
      const contractions = kernel.members.filter((m) => m.name.startsWith("contract"));
      const ownerOfLoop = (text) => text.split("#").pop().split(/\s+/).find((w) => hues.has(w))
        ?? contractions[Number(text.match(/^\s*(?:tile|pack)_k\d+_(\d+)\[/)?.[1]) - 1]?.name;
      this.fill("loops", kernel.loops.split("\n").map((text) => ({
        text, member: ownerOfLoop(text) })), hues);
      const helpers = this.program.helpers.filter(
        (helper) => (kernel.calls_helpers || []).includes(helper.name));
      this.fill("source", [
        ...kernel.coloured.map((markup, i) => ({ markup, member: owner.get(i + 1) })),
        ...helpers.flatMap((helper) => [{ text: "" }, ...helper.coloured.map(
          (markup) => ({ markup }))]),
      ], hues);
      const none = this.program.cut ? "left out to keep the page small: DEBUG=7 prints it"
        : "no disassembly: objdump was not found";
      const code = kernel.asm?.length ? kernel.asm : [[none, null]];
      this.fill("asm", [
        ...code.map(([text, line]) => ({ text, member: owner.get(line) })),
        ...helpers.flatMap((helper) => [{ text: "" }, { text: `${helper.name}:` },
          ...(helper.asm || []).map(([text]) => ({ text }))]),
      ], hues);
      const same = kernel.source.match(/\b(k\d+_\w+)\(void/)?.[1];
      find(".pane.source h3 small", this.section).textContent = same && same !== kernel.name
        ? `${same} does the same on other memory: one function for both` : "";
      this.describe(kernel);
      if (this.pinned) this.mark("pinned", this.pinned);
    }

    fill(name, lines, hues) {
      const body = this.pane(name);
      body.classList.add("text");
      const rows = lines.map(({ text, markup, member }, i) => {
        const row = make("div");
        row.append(make("i", "", String(i + 1)));
        const code = make("code", "", text);
        if (markup !== undefined) code.innerHTML = markup; // made and escaped by Pygments
        row.append(code);
        if (member) {
          row.dataset.member = member;
          row.style.setProperty("--hue", hues.get(member));
          this.code.push(row);
        }
        return row;
      });
      body.replaceChildren(...rows);
      body.scrollTop = 0;
    }

    describe(kernel) {
      const place = find(".chosen", this.section);
      const row = document.getElementById(`${this.section.id}-k${kernel.index}`);
      const apart = this.program.links.filter(
        (l) => l.from === kernel.index || l.to === kernel.index).length;
      const label = find(".pick", row).cloneNode(true);
      const why = make("button", "", `why apart: ${apart} boundaries`);
      why.type = "button";
      why.addEventListener("click", () => {
        this.filterBoundaries(`k${kernel.index}`, null);
        find(".boundaries", this.section).scrollIntoView();
      });
      const unfused = kernel.unfused && kernel.unfused.kernels > 1
        ? `; ${kernel.unfused.kernels} kernels and ${ms(kernel.unfused.us)} unfused` : "";
      const text = ` ${ms(kernel.median_us)}, ${Math.round(kernel.share * 100)} % of the roof, `
        + `bound by ${kernel.bound}${unfused} `;
      const copy = find(".copy", row).cloneNode(true);
      copy.textContent = copy.dataset.copy;
      place.replaceChildren(...label.childNodes, document.createTextNode(text), why, " ", copy);
    }

    // -- the graph -------------------------------------------------------------------------------

    // One box is in the tab order; arrows go on from there.
    rove() {
      const current = this.boxes.get(this.kernel ?? 0);
      for (const box of this.boxes.values()) box.tabIndex = box === current ? 0 : -1;
    }

    step(box, key) {
      const from = box.getBoundingClientRect();
      const way = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
      let best = null, least = Infinity;
      for (const other of this.boxes.values()) {
        const to = other.getBoundingClientRect();
        const dx = to.x - from.x, dy = to.y - from.y;
        const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
        if (along > 4 && along + 3 * aside < least) [best, least] = [other, along + 3 * aside];
      }
      if (best) { box.tabIndex = -1; best.tabIndex = 0; best.focus(); }
    }

    setZoom(factor) {
      this.zoom = Math.min(3, Math.max(0.1, factor));
      for (const svg of all("svg.graph", this.section)) {
        const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
        svg.setAttribute("width", width * this.zoom);
        svg.setAttribute("height", height * this.zoom);
      }
    }

    fit() {
      const svg = all("svg.graph", this.section).find((s) => !s.hasAttribute("hidden"));
      const width = Number(svg.getAttribute("viewBox").split(" ")[2]);
      this.setZoom(Math.max(0.45, Math.min(1, (this.canvas.clientWidth - 12) / width)));
    }

    // Open a box to its members; boxes below move down, wires are drawn anew.
    expand(index) {
      if (!this.opened.delete(index)) this.opened.add(index);
      const [width, height] = this.drawing.box;
      const rows = new Map();
      const at = (box) => {
        box.origin ??= box.getAttribute("transform").match(/[-\d.]+/g).map(Number);
        return box.origin;
      };
      for (const [k, box] of this.boxes) {
        find(".members", box)?.remove();
        const extra = this.opened.has(k) ? 16 * this.program.kernels[k].members.length + 6 : 0;
        box.tall = height + extra;
        find(".card", box).setAttribute("height", box.tall);
        find(".stripe", box).setAttribute("height", box.tall);
        rows.set(at(box)[1], Math.max(rows.get(at(box)[1]) || 0, extra));
        if (extra) box.append(this.inside(this.program.kernels[k], height, width));
      }
      const shift = (y) => [...rows].reduce((sum, [row, extra]) => sum + (row < y ? extra : 0), 0);
      const places = new Map();
      for (const [k, box] of this.boxes) {
        const [x, y] = at(box);
        places.set(k, { x, y: y + shift(y), tall: box.tall });
        box.setAttribute("transform", `translate(${x} ${y + shift(y)})`);
      }
      for (const wire of all(".wire", this.graph)) {
        const [from, to] = [Number(wire.dataset.from), Number(wire.dataset.to)];
        const same = this.program.kernels[from].phase === this.program.kernels[to].phase;
        const path = this.wirePath(places.get(from), places.get(to), same);
        for (const line of all("path", wire)) line.setAttribute("d", path);
      }
      this.graph.base ??= this.graph.getAttribute("viewBox").split(" ").map(Number);
      const [, , wide, high] = this.graph.base;
      this.graph.setAttribute("viewBox", `0 0 ${wide} ${high + shift(Infinity)}`);
      this.setZoom(this.zoom);
      this.collect();
      if (this.pinned) this.mark("pinned", this.pinned);
    }

    inside(kernel, top, width) {
      const group = draw("g", { class: "members" });
      kernel.members.forEach((member, i) => {
        const text = cut(`${member.name} ${member.text}`, Math.floor((width - 30) / 6.8));
        const row = draw("text", { x: 27, y: top + 12 + 16 * i, class: "inside" }, text);
        row.dataset.member = member.name;
        const line = member.line ? `, ${member.line[0].split("/").pop()}:${member.line[1]}` : "";
        const count = (member.nodes || []).length;
        row.append(draw("title", {}, `${member.name} ${member.text}${line}; ${count} operations`));
        group.append(row);
      });
      return group;
    }

    // The curve of graph.py's wire_path, for boxes of any height.
    wirePath(a, b, sameLane) {
      const [width, height, down] = this.drawing.box;
      const middle = (box) => box.y + Math.min(height, box.tall) / 2;
      if (!sameLane || a.y === b.y) {
        const [x, u] = b.x > a.x ? [a.x + width, b.x] : [a.x, b.x + width];
        const bend = (u - x) / 2;
        return `M${x} ${middle(a)}C${x + bend} ${middle(a)} ${u - bend} ${middle(b)} ${u} ${middle(b)}`;
      }
      if (a.x === b.x && Math.abs(b.y - a.y) > down * 1.5) {
        const out = a.x - 10 - Math.min(26, (Math.abs(b.y - a.y) / down) * 4);
        return `M${a.x} ${middle(a)}C${out} ${middle(a)} ${out} ${middle(b)} ${a.x} ${middle(b)}`;
      }
      const [y, v] = b.y > a.y ? [a.y + a.tall, b.y] : [a.y, b.y + b.tall];
      const [x, u] = [a.x + width / 2, b.x + width / 2];
      const half = (y + v) / 2;
      return `M${x} ${y}C${x} ${half} ${u} ${half} ${u} ${v}`;
    }

    showUnfused(wanted) {
      let before = find("svg.unfused", this.section);
      if (wanted && !before) {
        this.nodes = new Map(this.program.nodes.map((node) => [node.id, node]));
        this.canvas.append(before = this.drawUnfused());
      }
      this.graph.toggleAttribute("hidden", wanted);
      before?.toggleAttribute("hidden", !wanted);
      this.collect();
      this.fit();
      if (this.pinned) this.mark("pinned", this.pinned);
      this.reveal(document.body.firstChild);
    }

    // Every operation by itself, inside an outline of the kernel that it will be part of; kernels
    // stay in their rows and columns, which are as tall as they need be.
    drawUnfused() {
      const [width, , down] = this.drawing.box, tall = 18, above = 20;
      const within = new Map(this.program.kernels.map((kernel) => [kernel.index, []]));
      for (const [id, kernel] of this.drawing.operations.homes) within.get(kernel).push(id);
      const origin = (k) => this.boxes.get(k).origin
        ?? this.boxes.get(k).getAttribute("transform").match(/[-\d.]+/g).map(Number);
      const rows = new Map();
      for (const [k, ids] of within) {
        const row = origin(k)[1];
        rows.set(row, Math.max(rows.get(row) || 0, above + ids.length * tall + down / 3));
      }
      const top = (y) => [...rows].reduce((sum, [row, high]) => sum + (row < y ? high : 0), 20);
      const right = Math.max(...[...within.keys()].map((k) => origin(k)[0])) + width + 40;
      const svg = draw("svg", {
        class: "graph unfused", viewBox: `0 0 ${right} ${top(Infinity) + 20}` });
      const wires = draw("g", {});
      svg.append(wires);
      const places = new Map();
      for (const [k, ids] of within) {
        const [x, y] = [origin(k)[0], top(origin(k)[1])];
        svg.append(this.outline(k, x, y, above + ids.length * tall));
        ids.forEach((id, i) => {
          places.set(id, { x, y: y + above + i * tall, tall: tall - 2 });
          svg.append(this.operation(id, places.get(id)));
        });
      }
      const phase = new Map(this.program.nodes.map((node) => [node.id, node.phase]));
      for (const [a, b] of this.drawing.operations.edges) {
        const path = this.wirePath(places.get(a), places.get(b), phase.get(a) === phase.get(b));
        wires.append(draw("path", { class: "line", d: path }));
      }
      return svg;
    }

    outline(k, x, y, high) {
      const kernel = this.program.kernels[k];
      const group = draw("g", {
        class: `outline ${kernel.phase}`, transform: `translate(${x - 5} ${y})` });
      group.dataset.k = k;
      group.append(
        draw("rect", { width: this.drawing.box[0] + 10, height: high + 4, rx: 6 }),
        draw("text", { x: 6, y: 14 }, cut(`${kernel.phase[0].toUpperCase()} ${kernel.name}`, 27)));
      return group;
    }

    operation(id, place) {
      const node = this.nodes.get(id), width = this.drawing.box[0];
      const box = draw("g", {
        class: `box ${node.phase}`, transform: `translate(${place.x} ${place.y})` });
      box.dataset.node = id;
      box.dataset.k = node.kernels[0];
      const line = node.line ? ` ${node.line[0].split("/").pop()}:${node.line[1]}` : "";
      box.append(
        draw("title", {}, `${node.text} ${node.shape}${line}`),
        draw("rect", { width, height: place.tall, rx: 3, class: "card" }),
        draw("text", { x: 6, y: 12, class: "shape" }, cut(`${node.op} ${node.shape}`, 27)));
      return box;
    }

    // -- keys ------------------------------------------------------------------------------------

    key(event) {
      const box = event.target.closest?.(".box");
      const list = event.target.closest?.(".code");
      const arrow = event.key.startsWith("Arrow");
      if (box && arrow) { event.preventDefault(); this.step(box, event.key); return; }
      if (box && event.key === "Enter") {
        event.preventDefault();
        if (this.pinned && this.kernel === Number(box.dataset.k)) this.expand(this.kernel);
        else this.select(Number(box.dataset.k));
        return;
      }
      if (list && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
        const rows = all("[data-line],[data-member]", list);
        const at = rows.indexOf(find(".at", list));
        const next = rows[Math.min(rows.length - 1, Math.max(0, at + (event.key === "ArrowDown" ? 1 : -1)))];
        if (!next) return;
        event.preventDefault();
        rows[at]?.classList.remove("at");
        next.classList.add("at");
        next.scrollIntoView({ block: "nearest" });
        this.hover(next);
      }
      if (list && event.key === "Enter") {
        const row = find(".at", list);
        if (row) this.pin(this.focusOf(row), row);
      }
    }

    // -- tables ----------------------------------------------------------------------------------

    sort(table, column) {
      const heads = all("thead th", table), head = heads[column];
      const down = head.classList.contains("figure")
        ? head.getAttribute("aria-sort") !== "descending" : head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = head.classList.contains("figure")
        ? (a, b) => Number(value(a)) - Number(value(b))
        : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...rows);
    }

    filterKernels(text) {
      const rows = all(".kernels tbody tr", this.section);
      this.filter(rows, rows.map((row) => matches(row.textContent + all("[title]", row).map(
        (e) => e.title).join(" "), text)), "kernels", text);
    }

    // By the kernels at either end (k12), any other words, and a rule.
    filterBoundaries(text, rule) {
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      const ends = words.filter((word) => /^k\d+$/.test(word)).map((word) => word.slice(1));
      const rest = words.filter((word) => !/^k\d+$/.test(word)).join(" ");
      const entries = all(".boundary", this.section);
      this.filter(entries, entries.map((entry) => {
        const { from, to, rules } = entry.dataset;
        return ends.every((end) => end === from || end === to) && matches(entry.textContent, rest)
          && (!rule || rules.split(" ").includes(rule));
      }), "boundaries", text);
      for (const chip of all(".rules .chip", this.section)) {
        chip.setAttribute("aria-pressed", String(chip.dataset.rule === rule));
      }
    }

    filter(elements, wanted, what, text) {
      elements.forEach((element, i) => { element.hidden = !wanted[i]; });
      const input = find(`[data-filter="${what}"]`, this.section);
      if (input.value !== text) input.value = text;
      const shown = wanted.filter(Boolean).length;
      find("output", input.parentElement).textContent = `${shown} of ${elements.length}`;
    }

    // -- passes ----------------------------------------------------------------------------------

    showPass(index) {
      const step = this.program.passes[index];
      if (!step) return;
      const buttons = all("[data-pass]", this.section);
      buttons.forEach((b, i) => b.closest("tr").classList.toggle("now", i === index));
      const body = find(".diff", this.section);
      const fired = this.folded(step.firings || [], "rules fired", (firing) => firing.rule,
        (firing) => {
          const line = firing.line ? ` [${firing.line[0].split("/").pop()}:${firing.line[1]}]` : "";
          return firing.before ? `${firing.before} → ${firing.after}${line}` : firing.kernel;
        });
      const remarks = this.folded(step.remarks || [], "remarks", (remark) => remark.kind,
        (remark) => `${remark.subject}: ${remark.message}`);
      const lines = (step.diff || "").split("\n");
      if (this.program.cut) lines[0] = "left out to keep the page small: DEBUG=5 prints it";
      else if (!fired.length && !remarks.length && !step.diff) lines[0] = "nothing changed";
      const compared = (step.diff || "").startsWith("---");
      const rows = (some) => some.map((text) => make("div", {
        "+": "added", "-": "removed", "@": "place" }[
        compared && !/^(---|\+\+\+) /.test(text) ? text[0] : ""] || "", text));
      body.replaceChildren(...fired, ...remarks, ...rows(lines.slice(0, LONGEST)));
      if (lines.length > LONGEST) {
        const more = make("button", "", `${lines.length - LONGEST} more lines`);
        more.addEventListener("click", () => more.replaceWith(...rows(lines.slice(LONGEST))));
        body.append(more);
      }
      body.scrollTop = 0;
    }

    // A list that opens on demand, with how many there are of each kind.
    folded(items, title, kind, text) {
      if (!items.length) return [];
      const counts = new Map();
      for (const item of items) counts.set(kind(item), (counts.get(kind(item)) || 0) + 1);
      const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6);
      const kinds = most.map(([name, count]) => `${name} ${count}`).join(", ");
      const all = make("details", "fired");
      all.append(make("summary", "", `${items.length} ${title}: ${kinds}`));
      for (const item of items) {
        const row = make("div");
        row.append(make("b", "", kind(item)), ` ${text(item)}`);
        all.append(row);
      }
      return [all];
    }

    // -- tools -----------------------------------------------------------------------------------

    equip() {
      for (const button of all(".kernels thead button", this.section)) {
        button.disabled = false;
        const head = button.closest("th");
        button.addEventListener("click", () => this.sort(head.closest("table"), head.cellIndex));
      }
      const act = {
        unfused: (input) => this.showUnfused(input.checked),
        expand: () => this.expand(this.kernel ?? 0),
        in: () => this.setZoom(this.zoom * 1.25),
        out: () => this.setZoom(this.zoom / 1.25),
        fit: () => this.fit(),
      };
      for (const tool of all("[data-do]", this.section)) {
        tool.addEventListener(tool.type === "checkbox" ? "change" : "click",
          () => act[tool.dataset.do](tool));
      }
      for (const input of all("[data-filter]", this.section)) {
        input.addEventListener("input", () => (input.dataset.filter === "kernels"
          ? this.filterKernels(input.value) : this.filterBoundaries(input.value, null)));
      }
      for (const chip of all(".rules .chip", this.section)) {
        chip.addEventListener("click", () => this.filterBoundaries("",
          chip.getAttribute("aria-pressed") === "true" ? null : chip.dataset.rule));
      }
      const passes = all("[data-pass]", this.section);
      passes.forEach((button, i) => {
        button.addEventListener("click", () => this.showPass(i));
        button.addEventListener("keydown", (event) => {
          const next = passes[i + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] || 0)];
          if (!event.key.startsWith("Arrow") || !next) return;
          event.preventDefault();
          next.focus();
          next.click();
        });
      });
      this.pan();
    }

    // Drag to move the graph, with Ctrl and the wheel to zoom.
    pan() {
      const canvas = this.canvas;
      let held = null;
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button === 0) held = [event.clientX, event.clientY, canvas.scrollLeft, canvas.scrollTop];
        this.dragged = false;
      });
      window.addEventListener("pointermove", (event) => {
        if (!held) return;
        const [x, y, left, top] = held;
        if (Math.hypot(event.clientX - x, event.clientY - y) > 5) {
          this.dragged = true;
          canvas.classList.add("held");
        }
        if (this.dragged) canvas.scrollTo(left + x - event.clientX, top + y - event.clientY);
      });
      window.addEventListener("pointerup", () => {
        held = null;
        canvas.classList.remove("held");
        setTimeout(() => { this.dragged = false; });
      });
      canvas.addEventListener("dragstart", (event) => event.preventDefault());
      canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        this.setZoom(this.zoom * (event.deltaY < 0 ? 1.12 : 1 / 1.12));
      }, { passive: false });
    }
  }

  function push(map, key, value) {
    if (key === null || key === undefined) return;
    if (!map.has(key)) map.set(key, []);
    map.get(key).push(value);
  }

  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const ms = (us) => (us < 1000 ? `${us.toPrecision(3)} us` : `${(us / 1000).toPrecision(3)} ms`);
  const matches = (text, wanted) => wanted.toLowerCase().split(/\s+/).every(
    (word) => text.toLowerCase().includes(word));

  // -- the page ----------------------------------------------------------------------------------

  const views = all("section.program").map(
    (section, i) => new View(section, report.programs[i], drawings[i]));
  let current = 0;

  function showProgram(index) {
    current = index;
    views.forEach((view, i) => { view.section.hidden = i !== index; });
    const select = document.getElementById("program");
    if (select) select.selectedIndex = index;
    for (const link of all("[data-section]")) link.hash = `#p${index}-${link.dataset.section}`;
    views[index]?.fit();
    views[index]?.showFirstLine();
  }

  function follow(hash) {
    const found = hash.match(/^#p(\d+)(?:-([kl])(\d+))?/);
    if (!found || !views[found[1]]) return false;
    showProgram(Number(found[1]));
    const view = views[found[1]];
    if (found[2] === "k" && view.program.kernels[found[3]]) view.select(Number(found[3]));
    else if (found[2] === "l") view.openBoundary(hash.slice(1));
    else return false;
    return true;
  }

  // What was copied last says so, until something else is.
  let copied = null;

  function copy(button) {
    const area = make("textarea", "", button.dataset.copy);
    document.body.append(area);
    area.select();
    // asks nobody for permission, and works for pages from the disk everywhere
    if (!document.execCommand("copy")) navigator.clipboard?.writeText(area.value);
    area.remove();
    if (copied) copied.button.textContent = copied.before;
    copied = { button, before: button.textContent };
    button.textContent = "copied";
  }

  function keys(event) {
    const view = views[current];
    if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { view.release(); document.activeElement?.blur(); return; }
    if (event.target.matches("input, select, textarea")) return;
    const last = view.program.kernels.length - 1;
    if (event.key === "j") view.select(Math.min(last, (view.kernel ?? -1) + 1));
    if (event.key === "k") view.select(Math.max(0, (view.kernel ?? 1) - 1));
    if (event.key === "/") {
      event.preventDefault();
      find("[data-filter='kernels']", view.section).focus();
    }
  }

  document.addEventListener("keydown", keys);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  document.getElementById("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  document.getElementById("program")?.addEventListener(
    "change", (event) => showProgram(event.target.selectedIndex));
  window.addEventListener("hashchange", () => follow(location.hash));
  for (const view of views) view.equip();
  showProgram(0);
  unpack().then(() => {
    follow(location.hash);
    for (const view of views) {
      view.showPass(0);
      const slowest = view.program.kernels.reduce(
        (best, k) => (best === null || k.median_us > best.median_us ? k : best), null);
      if (view.kernel === null && slowest) {
        view.kernel = slowest.index;
        view.show(slowest.index);
        view.rove();
      }
    }
    document.documentElement.dataset.ready = "yes";
  });
})();
