"use strict";
/* Draws the flame-like pictures and the timelines from the JSON block. Every text here is data: it is set as text, never
   as markup. Instants are nanoseconds from the first instant of the file; a timeline begins at its first interval. */
(() => {
  const data = JSON.parse(document.getElementById("profile-data").textContent);
  const drawn = { flames: [], times: [] };
  window.pinchpointProfile = drawn;
  const ROW = 32, LABEL = 15, STREAM = 24, STEPS = 20, IDLE = 12, GAP = 9, AXIS = 22, STRIP = 26, TEXT_MIN = 46, TINY = 7;
  const NS = 1e9;

  const significant = (value) => {
    if (value === 0) return "0";
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    return value.toLocaleString("en", { maximumFractionDigits: Math.min(digits, 6) });
  };
  const duration = (ns) => {
    if (ns === 0) return "0";
    const size = Math.abs(ns);
    if (size < 1e3) return significant(ns) + " ns";
    if (size < 1e6) return significant(ns / 1e3) + " µs";
    return size < NS ? significant(ns / 1e6) + " ms" : significant(ns / NS) + " s";
  };
  const percent = (ratio) => `${(ratio * 100).toFixed(1)} %`;
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text != null) made.textContent = text;
    return made;
  };
  const title = (key) => data.titles[key] ?? key;

  /* -- the flame-like picture: boxes are buttons, so that keys and screen readers reach them -- */
  const buildFlame = (host, rank, index) => {
    const rows = rank.overview.map(([level, name, family, parent, ns, count], i) => ({ i, level, name, family, parent, ns, count, children: [] }));
    rows.forEach((row) => { if (row.parent >= 0) rows[row.parent].children.push(row); });
    const roots = rows.filter((row) => row.parent < 0);
    const total = roots.reduce((sum, row) => sum + row.ns, 0) || 1;
    const place = (row, left, depth) => {
      Object.assign(row, { left, depth });
      row.children.reduce((at, child) => { place(child, at, depth + 1); return at + child.ns; }, left);
    };
    roots.reduce((at, row) => { place(row, at, 0); return at + row.ns; }, 0);
    const deepest = Math.max(...rows.map((row) => row.depth));
    host.style.height = `${(deepest + 1) * ROW + 2}px`;
    const told = document.querySelector(`[data-told="flame-${index}"]`);
    const tools = host.previousElementSibling, crumbs = tools.querySelector(".crumbs"), find = tools.querySelector("input");
    tools.hidden = false;
    const path = (row) => (row.parent < 0 ? [row] : [...path(rows[row.parent]), row]);
    let zoomed = null;

    const tell = (row) => {
      told.textContent = "";
      if (!row) { told.append("Point at a box to read it."); return; }
      told.append(element("b", "", row.name), ` — ${duration(row.ns)}, ${percent(row.ns / total)} of all`);
      if (row.parent >= 0 && rows[row.parent].parent >= 0) told.append(`, ${percent(row.ns / rows[row.parent].ns)} of ${rows[row.parent].name}`);
      if (row.count) told.append(row.family === "idle" ? `; ${row.count.toLocaleString("en")} gaps` : `; ${row.count.toLocaleString("en")} times`);
    };
    rows.forEach((row) => {
      const box = row.box = element("button", row.family ? `f-${row.family}` : "plain");
      box.type = "button";
      box.append(row.name);
      box.style.top = `${row.depth * ROW + 1}px`;
      box.setAttribute("aria-label", `${row.name}, ${duration(row.ns)}, ${percent(row.ns / total)}`);
      box.addEventListener("click", () => zoomTo(zoomed === row && row.parent >= 0 ? rows[row.parent] : row));
      box.addEventListener("mouseenter", () => tell(row));
      box.addEventListener("focus", () => tell(row));
      host.append(box);
    });
    host.addEventListener("mouseleave", () => tell(zoomed));

    const layOut = () => {
      const from = zoomed ? zoomed.left : 0, span = zoomed ? zoomed.ns : total, width = host.clientWidth;
      const above = new Set(zoomed ? path(zoomed) : []);
      rows.forEach((row) => {
        const whole = above.has(row);
        const left = whole ? 0 : (row.left - from) / span, right = whole ? 1 : (row.left + row.ns - from) / span;
        const pixels = (right - left) * width;
        const out = right <= 0 || left >= 1 || pixels < 0.4;
        row.box.hidden = out;
        if (out) return;
        row.box.style.left = `${left * 100}%`;
        row.box.style.width = `calc(${(right - left) * 100}% - ${pixels > 3 ? 1 : 0}px)`;
        row.box.classList.toggle("tiny", pixels < TINY * 3);
        row.box.tabIndex = pixels < TINY ? -1 : 0;
      });
    };
    const zoomTo = (row) => {
      zoomed = row && row.parent >= 0 ? row : null;
      crumbs.textContent = "";
      (zoomed ? path(zoomed) : roots.slice(0, 1)).forEach((each, i, all) => {
        const crumb = element("button", "", each.name);
        crumb.type = "button";
        if (i === all.length - 1) crumb.setAttribute("aria-current", "true");
        crumb.addEventListener("click", () => zoomTo(each));
        crumbs.append(crumb);
      });
      layOut();
      tell(zoomed);
    };
    const search = () => {
      const wanted = find.value.trim().toLowerCase();
      const hit = (row) => wanted !== "" && row.name.toLowerCase().includes(wanted);
      const under = (row) => hit(row) || row.children.some(under);
      let found = 0, boxes = 0;
      const sum = (row) => { if (hit(row)) { found += row.ns; boxes += 1; } else row.children.forEach(sum); };
      roots.forEach(sum);
      rows.forEach((row) => {
        row.box.classList.toggle("hit", hit(row));
        row.box.classList.toggle("dim", wanted !== "" && !under(row) && !path(row).some(hit));
      });
      if (wanted === "") return tell(zoomed);
      told.textContent = "";
      told.append(element("b", "", boxes ? `${duration(found)}, ${percent(found / total)} of all` : "Nothing found"), boxes ? ` in ${boxes} ${boxes === 1 ? "box" : "boxes"} with “${find.value.trim()}”` : "");
    };
    find.addEventListener("input", search);
    find.addEventListener("keydown", (event) => { if (event.key === "Escape") { find.value = ""; search(); } });
    zoomTo(null);
    return { layOut, zoomTo, rows, state: () => ({ zoomed: zoomed && zoomed.i, told: told.textContent }) };
  };

  /* -- the timeline -- */
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const VARIABLES = { launch_bound: "--k-launch", host_bound: "--k-host", communication_wait: "--k-wait", data_copy: "--k-data", queued: "--k-queued", unknown: "--k-untold", prefill: "--k-attention", decode: "--k-matrix", mixed: "--k-small" };
  const buildTime = (host, rank) => {
    host.hidden = false;
    const large = host.querySelector(".large"), small = host.querySelector(".small"), tip = host.querySelector(".tip"), readout = host.querySelector(".readout");
    const lanes = rank.lanes.map((lane) => {
      let at = 0;
      return { ...lane, begins: lane.starts.map((step) => (at += step)) };
    });
    const start = Math.min(...lanes.flatMap((lane) => lane.begins.slice(0, 1)));
    const end = Math.max(...lanes.map((lane) => lane.begins.reduce((most, begin, i) => Math.max(most, begin + lane.lengths[i]), 0)));
    const full = { from: 0, to: Math.max(1, end - start) };
    lanes.forEach((lane) => { lane.begins = lane.begins.map((begin) => begin - start); });
    const least = Math.max(200, full.to / 1e5);
    let view = { ...full }, colours = {}, selecting = null;

    const tall = (lane) => (lane.kind === "steps" ? STEPS : lane.kind === "idle" ? IDLE : STREAM);
    let y = AXIS;
    lanes.forEach((lane) => { lane.y = y + LABEL; lane.h = tall(lane); y = lane.y + lane.h + GAP; });
    const height = y + 2;
    const colour = (lane, key) => (colours[lane.kind + key] ??= style(lane.kind === "stream" ? `--k-${key}` : VARIABLES[key] ?? "--k-other") || style("--k-other"));
    const ink = (name) => (colours[name] ??= style("--" + name));

    const prepare = (canvas, tallness) => {
      const ratio = devicePixelRatio || 1, width = host.clientWidth - 2;
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.round(tallness * ratio);
      canvas.style.height = `${tallness}px`;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      return { context, width };
    };
    /* First interval that ends after t: lanes are sorted by begin, and the longest bounds how far back to look. */
    lanes.forEach((lane) => { lane.longest = lane.lengths.reduce((a, b) => Math.max(a, b), 0); });
    const firstIn = (lane, t) => {
      let low = 0, high = lane.begins.length;
      while (low < high) { const middle = (low + high) >> 1; if (lane.begins[middle] < t - lane.longest) low = middle + 1; else high = middle; }
      return low;
    };
    const ticks = (span, width) => {
      const wanted = span / Math.max(2, width / 95), power = 10 ** Math.floor(Math.log10(wanted));
      return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= wanted);
    };
    const cut = (context, text, room) => {
      if (context.measureText(text).width <= room) return text;
      let kept = Math.floor(text.length * room / context.measureText(text).width);
      while (kept > 0 && context.measureText(text.slice(0, kept) + "…").width > room) kept -= 1;
      return kept > 2 ? text.slice(0, kept) + "…" : "";
    };
    const draw = () => {
      const { context, width } = prepare(large, height), span = view.to - view.from, scale = width / span;
      const x = (t) => (t - view.from) * scale;
      context.fillStyle = ink("paper");
      context.fillRect(0, 0, width, height);
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      const step = ticks(span, width);
      context.textAlign = "center";
      for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
        context.fillStyle = ink("grid");
        context.fillRect(Math.round(x(t)), AXIS, 1, height - AXIS);
        context.fillStyle = ink("soft");
        const half = context.measureText(duration(t)).width / 2;
        if (x(t) + half < width && x(t) - half > 0) context.fillText(duration(t), x(t), AXIS / 2);
        else if (t === 0) { context.textAlign = "left"; context.fillText("0", 4, AXIS / 2); context.textAlign = "center"; }
      }
      context.textAlign = "left";
      lanes.forEach((lane) => {
        context.fillStyle = ink("soft");
        context.font = "11px system-ui, sans-serif";
        context.fillText(lane.kind === "idle" ? "idle, by cause" : lane.name, 5, lane.y - LABEL / 2);
        context.fillStyle = ink("sheet");
        context.fillRect(0, lane.y, width, lane.h);
        for (let i = firstIn(lane, view.from); i < lane.begins.length && lane.begins[i] < view.to; i += 1) {
          const left = Math.max(-2, x(lane.begins[i])), right = Math.min(width + 2, x(lane.begins[i] + lane.lengths[i]));
          if (right < 0) continue;
          const wide = Math.max(right - left, 0.35), key = lane.categories[i];
          const filled = lane.lengths[i] ? Math.min(1, lane.busy[i] / lane.lengths[i]) : 1;
          const tallness = lane.kind === "stream" ? Math.max(2, lane.h * filled) : lane.h;
          context.fillStyle = colour(lane, key);
          if (lane.kind === "steps") {
            context.globalAlpha = 0.28;
            context.fillRect(left, lane.y, Math.max(wide - 1, 0.35), lane.h);
            context.globalAlpha = 1;
            context.fillRect(left, lane.y, Math.min(2, wide), lane.h);
          } else {
            const gap = wide > 4 ? 0.6 : 0;
            context.fillRect(left, lane.y + lane.h - tallness, wide - gap, tallness);
          }
          if (wide > TEXT_MIN && lane.kind !== "idle") {
            const from = Math.max(left, 0), room = Math.min(right, width) - from - 9;
            context.fillStyle = lane.kind === "steps" ? ink("ink") : "#fff";
            context.font = lane.kind === "steps" ? "600 11px system-ui, sans-serif" : "11px system-ui, sans-serif";
            if (room > 18) context.fillText(cut(context, lane.kind === "steps" ? rank.names[lane.names[i]] : rank.names[lane.names[i]], room), from + 5, lane.y + lane.h / 2 + 0.5);
          }
        }
      });
      if (selecting && selecting.moved) {
        context.fillStyle = ink("capacity");
        context.fillRect(Math.min(selecting.x0, selecting.x1), 0, Math.abs(selecting.x1 - selecting.x0), height);
      }
      drawStrip();
      readout.textContent = view.from === full.from && view.to === full.to ? `whole, ${duration(full.to)}` : `${duration(span)} from ${duration(view.from)}`;
      chips.forEach(({ button, from, to }) => button.setAttribute("aria-pressed", String(view.from === from && view.to === to)));
    };
    const strip = lanes.find((lane) => lane.kind === "stream") ?? lanes[0];
    const drawStrip = () => {
      const { context, width } = prepare(small, STRIP), scale = width / full.to;
      context.fillStyle = ink("sheet");
      context.fillRect(0, 0, width, STRIP);
      strip.begins.forEach((begin, i) => {
        context.fillStyle = colour(strip, strip.categories[i]);
        const filled = strip.lengths[i] ? Math.min(1, strip.busy[i] / strip.lengths[i]) : 1;
        const tallness = strip.kind === "stream" ? (STRIP - 8) * filled : STRIP - 8;
        context.fillRect(begin * scale, STRIP - 4 - tallness, Math.max(0.35, strip.lengths[i] * scale), tallness);
      });
      const left = view.from * scale, wide = Math.max(3, (view.to - view.from) * scale);
      context.fillStyle = ink("paper");
      context.globalAlpha = 0.72;
      context.fillRect(0, 0, left, STRIP);
      context.fillRect(left + wide, 0, width - left - wide, STRIP);
      context.globalAlpha = 1;
      context.strokeStyle = ink("accent");
      context.lineWidth = 1.5;
      context.strokeRect(left + 0.75, 0.75, Math.max(1.5, wide - 1.5), STRIP - 1.5);
    };

    let pending = 0;
    const later = () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(draw); };
    const show = (from, to) => {
      let span = Math.min(full.to, Math.max(least, to - from)), begin = (from + to - span) / 2;
      begin = Math.min(Math.max(0, begin), full.to - span);
      view = { from: begin, to: begin + span };
      tip.hidden = true;
      later();
    };
    const zoom = (factor, at) => {
      const centre = at ?? (view.from + view.to) / 2;
      show(centre - (centre - view.from) * factor, centre + (view.to - centre) * factor);
    };
    const move = (ratio) => { const by = (view.to - view.from) * ratio; show(view.from + by, view.to + by); };
    const instant = (pixel) => view.from + pixel / large.clientWidth * (view.to - view.from);

    /* what the pointer is on */
    const under = (px, py) => {
      const lane = lanes.find((each) => py >= each.y - LABEL && py < each.y + each.h + GAP / 2);
      if (!lane) return null;
      const t = instant(px), slack = (view.to - view.from) / large.clientWidth * 1.5;
      let best = -1, distance = Infinity;
      for (let i = firstIn(lane, t - slack); i < lane.begins.length && lane.begins[i] <= t + slack; i += 1) {
        const away = t < lane.begins[i] ? lane.begins[i] - t : Math.max(0, t - lane.begins[i] - lane.lengths[i]);
        if (away <= slack && away <= distance) { best = i; distance = away; }
      }
      return best < 0 ? null : { lane, i: best };
    };
    const tell = (px, py) => {
      const found = under(px, py);
      tip.hidden = !found;
      if (!found) return;
      const { lane, i } = found, length = lane.lengths[i], busy = lane.busy[i];
      tip.textContent = "";
      const several = lane.events[i] > 1 && lane.kind !== "steps";
      const heading = lane.kind === "idle" ? `Idle: ${title(lane.categories[i])}` : rank.names[lane.names[i]];
      tip.append(element("b", "", heading));
      if (lane.kind === "stream") tip.append(element("span", "", several ? `${lane.events[i]} pieces of work, this the longest; busy ${percent(length ? busy / length : 1)}` : lane.categories[i] === "small" ? "norm, elementwise or other small work" : lane.categories[i]));
      if (lane.kind === "steps") tip.append(element("span", "", `${title(lane.categories[i])} step, GPU busy ${percent(length ? busy / length : 1)}, ${lane.events[i].toLocaleString("en")} kernels`));
      if (lane.kind === "idle" && several) tip.append(element("span", "", `${lane.events[i]} gaps, idle ${percent(length ? busy / length : 1)}`));
      tip.append(element("span", "", `${duration(length)}, from ${duration(lane.begins[i])}`));
      const wide = tip.offsetWidth, room = large.clientWidth;
      tip.style.left = `${Math.max(4, Math.min(room - wide - 4, px + 14 > room - wide - 4 ? px - wide - 14 : px + 14))}px`;
      tip.style.top = `${Math.max(2, Math.min(py + STRIP + 16, height + STRIP - tip.offsetHeight - 4))}px`;
    };

    /* pointers: a mouse selects, fingers move and pinch */
    const fingers = new Map();
    let pinch = null;
    large.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") {
        if (event.button) return;
        selecting = { x0: event.offsetX, x1: event.offsetX, moved: false };
        large.setPointerCapture(event.pointerId);
        return;
      }
      fingers.set(event.pointerId, event.offsetX);
      const all = [...fingers.values()];
      pinch = { view: { ...view }, all };
    });
    large.addEventListener("pointermove", (event) => {
      if (selecting) {
        selecting.x1 = Math.max(0, Math.min(large.clientWidth, event.offsetX));
        selecting.moved ||= Math.abs(selecting.x1 - selecting.x0) > 4;
        tip.hidden = true;
        return later();
      }
      if (!fingers.has(event.pointerId)) return event.pointerType === "mouse" ? tell(event.offsetX, event.offsetY) : undefined;
      fingers.set(event.pointerId, event.offsetX);
      const now = [...fingers.values()], { view: was, all } = pinch, perPixel = (was.to - was.from) / large.clientWidth;
      if (now.length === 1 && all.length === 1) { const by = (all[0] - now[0]) * perPixel; show(was.from + by, was.to + by); }
      if (now.length === 2 && all.length === 2) {
        const factor = Math.abs(all[0] - all[1]) / Math.max(8, Math.abs(now[0] - now[1])), centre = was.from + (all[0] + all[1]) / 2 * perPixel;
        show(centre - (centre - was.from) * factor, centre + (was.to - centre) * factor);
      }
    });
    const release = (event) => {
      if (selecting) {
        const { x0, x1, moved } = selecting;
        selecting = null;
        if (moved) show(instant(Math.min(x0, x1)), instant(Math.max(x0, x1)));
      } else if (fingers.delete(event.pointerId)) {
        if (event.type === "pointerup" && pinch && Math.abs(view.from - pinch.view.from) < 1 && !fingers.size) tell(event.offsetX, event.offsetY);
        pinch = { view: { ...view }, all: [...fingers.values()] };
      }
    };
    large.addEventListener("pointerup", release);
    large.addEventListener("pointercancel", (event) => { selecting = null; release(event); later(); });
    large.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") tip.hidden = true; });
    large.addEventListener("dblclick", () => show(full.from, full.to));
    large.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(Math.exp(event.deltaY / 300), instant(event.offsetX)); }
      else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) { event.preventDefault(); move(event.deltaX / large.clientWidth); }
    }, { passive: false });
    large.addEventListener("keydown", (event) => {
      const act = { ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), Home: () => show(full.from, full.to), Escape: () => { tip.hidden = true; } }[event.key];
      if (act) { event.preventDefault(); act(); }
    });
    const jump = (event) => { const t = event.offsetX / small.clientWidth * full.to, half = (view.to - view.from) / 2; show(t - half, t + half); };
    small.addEventListener("pointerdown", (event) => { small.setPointerCapture(event.pointerId); jump(event); });
    small.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
    const acts = { left: () => move(-0.5), right: () => move(0.5), in: () => zoom(0.5), out: () => zoom(2), whole: () => show(full.from, full.to) };
    host.querySelectorAll("[data-act]").forEach((button) => button.addEventListener("click", () => acts[button.dataset.act]()));

    /* a button for each of the first steps */
    const chips = [];
    const steps = lanes.find((lane) => lane.kind === "steps");
    if (steps) {
      steps.begins.slice(0, 24).forEach((begin, i) => {
        const button = element("button", "", `${steps.categories[i] === "unknown" ? "step" : steps.categories[i]} ${i + 1}`);
        button.type = "button";
        button.title = rank.names[steps.names[i]];
        const from = begin, to = begin + steps.lengths[i];
        button.addEventListener("click", () => show(from, to));
        chips.push({ button, from, to });
        host.querySelector(".stage-chips").append(button);
      });
    }
    draw();
    return { draw, show, recolour: () => { colours = {}; draw(); }, view: () => view, full, lanes };
  };

  /* -- devices, one at a time -- */
  const groups = [...document.querySelectorAll(".rank")];
  const build = (index) => {
    const flame = document.querySelector(`[data-flame="${index}"]`), time = document.querySelector(`[data-time="${index}"]`);
    if (flame && !drawn.flames[index]) drawn.flames[index] = buildFlame(flame, data.ranks[index], index);
    if (time && !drawn.times[index]) drawn.times[index] = buildTime(time, data.ranks[index]);
  };
  let shown = 0;
  const redraw = () => { drawn.flames[shown]?.layOut(); drawn.times[shown]?.draw(); };
  const choose = (index) => {
    shown = index;
    groups.forEach((group, i) => { group.hidden = i !== index; });
    document.querySelectorAll("[data-rank]").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.rank) === index)));
    document.querySelectorAll("[data-part]").forEach((link) => { link.href = `#r${index}-${link.dataset.part}`; });
    build(index);
    redraw();
  };
  const chooser = document.querySelector(".ranks");
  if (chooser) chooser.hidden = false;
  document.querySelectorAll("[data-rank]").forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.rank))));
  if (groups.length) choose(0);
  let width = document.documentElement.clientWidth, waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      if (document.documentElement.clientWidth === width) return;
      width = document.documentElement.clientWidth;
      redraw();
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.times.forEach((time) => time?.recolour()));
})();
