"use strict";
/* Draws the charts of the report from the JSON block. Every text here is data: it is set as text, never as markup.
   The charts of one group share a cursor; the charts of the timeline also share their zoom. */
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const charts = { curve: [], timeline: [] };
  window.pinchpointCharts = charts;
  const CURVE_HEIGHT = 250, TIME_HEIGHT = 168, SMALL_HEIGHT = 104, PRINT_WIDTH = 660, NARROW = 520;
  const full = { min: 0, max: data.duration_s };
  let zoom = { ...full };

  const style = () => getComputedStyle(document.documentElement);
  let colours = {};
  const colour = (name) => (colours[name] ??= style().getPropertyValue("--" + name).trim());

  const significant = (value) => {
    if (value === 0) return "0";
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    return value.toLocaleString("en", { maximumFractionDigits: Math.min(digits, 6) });
  };
  const steps = { bytes: ["B", 1000], "bytes/s": ["B/s", 1000], W: ["W", 1000], J: ["J", 1000], Hz: ["Hz", 1000] };
  const prefixed = (value, unit, step) => {
    const prefixes = ["", "k", "M", "G", "T", "P"];
    let i = 0;
    while (Math.abs(value) >= step && i < prefixes.length - 1) { value /= step; i += 1; }
    return `${significant(value)} ${prefixes[i]}${unit}`;
  };
  const format = (unit, value) => {
    if (value == null) return "–";
    if (unit === "ratio") return significant(value * 100) + " %";
    if (unit === "degC") return significant(value) + " °C";
    if (steps[unit]) return value === 0 ? "0" : prefixed(value, ...steps[unit]);
    if (unit !== "s") return significant(value);
    if (value === 0) return "0";
    if (Math.abs(value) < 1e-3) return significant(value * 1e6) + " µs";
    return Math.abs(value) < 1 ? significant(value * 1e3) + " ms" : significant(value) + " s";
  };

  /* -- what is drawn behind and over the lines -- */
  const clipped = (u, draw) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    draw(ctx, bbox, devicePixelRatio || 1);
    ctx.restore();
  };
  const font = (px) => `${px * (devicePixelRatio || 1)}px system-ui, sans-serif`;

  const failed = (stage) => stage.decision.endsWith("fail");

  const stageBands = (small) => (u) => {
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    clipped(u, () => data.stages.forEach((stage, i) => {
      const left = u.valToPos(stage.t0, "x", true), right = u.valToPos(stage.t1, "x", true);
      ctx.fillStyle = failed(stage) || stage.kind === "overload" ? colour("band-bad") : colour("band");
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }));
    if (small) return;
    ctx.save();
    ctx.font = font(10.5);
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    data.stages.filter((stage) => stage.kind !== "recovery").forEach((stage) => {
      const left = Math.max(u.valToPos(stage.t0, "x", true), bbox.left);
      const right = Math.min(u.valToPos(stage.t1, "x", true), bbox.left + bbox.width);
      const text = [stage.label, stage.short].find((t) => ctx.measureText(t).width <= right - left - 4 * ratio);
      if (!text || right <= left) return;
      ctx.fillStyle = failed(stage) ? colour("fail") : colour("soft");
      ctx.fillText(text, left + 2 * ratio, bbox.top - 3 * ratio);
    });
    ctx.restore();
  };

  const capacityBand = (spec) => (u) => clipped(u, (ctx, bbox, ratio) => {
    const [lower, upper] = spec.capacity || [null, null];
    if (lower == null && upper == null) return;
    const left = lower == null ? bbox.left : u.valToPos(lower, "x", true);
    const right = upper == null ? bbox.left + bbox.width : u.valToPos(upper, "x", true);
    ctx.fillStyle = colour("capacity");
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
  });

  const capacityLabel = (spec) => (u) => {
    const [lower, upper] = spec.capacity || [null, null];
    if (lower == null && upper == null) return;
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1, right = bbox.left + bbox.width;
    ctx.save();
    ctx.font = font(10.5);
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    ctx.fillStyle = colour("accent");
    const width = ctx.measureText("capacity").width;
    const middle = ((lower == null ? bbox.left : u.valToPos(lower, "x", true)) + (upper == null ? right : u.valToPos(upper, "x", true))) / 2;
    ctx.fillText("capacity", Math.min(Math.max(middle - width / 2, bbox.left), right - width), bbox.top - 3 * ratio);
    ctx.restore();
  };

  let lastAbove = null;
  const limitLines = (spec) => (u) => clipped(u, (ctx, bbox, ratio) => spec.limits.forEach((limit, index) => {
    const y = u.valToPos(limit.value, "y", true);
    if (!(y >= bbox.top - 1 && y <= bbox.top + bbox.height + 1)) return;
    ctx.strokeStyle = ctx.fillStyle = colour("bad");
    ctx.lineWidth = 1.25 * ratio;
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = font(10.5);
    ctx.textAlign = "left";
    const room = (other) => { const gap = y - u.valToPos(other.value, "y", true); return gap <= 0 || gap > 15 * ratio; };
    const above = y - bbox.top > 16 * ratio && spec.limits.every(room);
    ctx.textBaseline = above ? "bottom" : "top";
    const crowd = spec.limits.slice(0, index).filter((other) => Math.abs(y - u.valToPos(other.value, "y", true)) <= 15 * ratio);
    const shift = above === lastAbove ? crowd.reduce((sum, other) => sum + ctx.measureText(other.label).width + 12 * ratio, 0) : 0;
    lastAbove = above;
    ctx.fillText(limit.label, bbox.left + 6 * ratio + shift, y + (above ? -3 : 3) * ratio);
  }));

  const shape = (ctx, decision, x, y, r) => {
    ctx.beginPath();
    if (decision === "pass") ctx.arc(x, y, r, 0, 2 * Math.PI);
    else if (decision === "fail") {
      ctx.moveTo(x - r, y - r); ctx.lineTo(x + r, y + r); ctx.moveTo(x + r, y - r); ctx.lineTo(x - r, y + r);
    } else if (decision.startsWith("leans")) {
      ctx.moveTo(x, y - 1.2 * r); ctx.lineTo(x + 1.2 * r, y); ctx.lineTo(x, y + 1.2 * r); ctx.lineTo(x - 1.2 * r, y);
      ctx.closePath();
    } else ctx.rect(x - .85 * r, y - .85 * r, 1.7 * r, 1.7 * r);
  };

  const decisionMarks = (spec) => (u) => {
    const ctx = u.ctx, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.setLineDash([]);
    spec.series.forEach((line, s) => {
      if (line.bare || !u.series[s + 1].show) return;
      spec.x.forEach((rate, i) => {
        const x = u.valToPos(rate, "x", true), span = line.interval && line.interval[i];
        if (span) {
          ctx.strokeStyle = colour(line.colour);
          ctx.lineWidth = 1.25 * ratio;
          ctx.beginPath();
          ctx.moveTo(x, u.valToPos(span[0], "y", true));
          ctx.lineTo(x, u.valToPos(span[1], "y", true));
          ctx.stroke();
        }
        if (line.values[i] == null) return;
        const decision = spec.marks[i];
        shape(ctx, decision, x, u.valToPos(line.values[i], "y", true), (line.thin ? 3.4 : 4.6) * (spec.weights[i] ? 1 : .78) * ratio);
        ctx.fillStyle = decision === "pass" ? colour("pass") : colour("paper");
        ctx.strokeStyle = colour(decision.replace("leans-", ""));
        ctx.lineWidth = (decision === "fail" ? 2.4 : 1.75) * ratio;
        if (decision !== "fail") ctx.fill();
        ctx.stroke();
      });
    });
    ctx.restore();
  };

  /* -- scales and axes -- */
  const yRange = (spec) => (u, min, max) => {
    const limits = spec.limits.map((limit) => limit.value);
    if (spec.log) {
      const low = Math.min(min ?? 1e-2, ...limits), high = Math.max(max ?? 1, ...limits);
      return [low / 1.35, high * 1.5];
    }
    const top = Math.max(max ?? 0, ...limits.filter((value) => spec.unit === "ratio" || value <= 4 * (max || value)));
    if (spec.unit === "ratio" && top <= 1) return [0, top > .5 ? 1.06 : Math.max(top * 1.25, .05)];
    return [0, top > 0 ? top * 1.14 : 1];
  };
  const logSplits = (u, axis, min, max) => {
    const splits = [], steps = max / min > 300 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++)
      steps.forEach((factor) => {
        const value = Number((factor * 10 ** power).toPrecision(3));
        if (value >= min && value <= max) splits.push(value);
      });
    return splits;
  };

  const axes = (spec, xLabel, narrow, small) => {
    const base = {
      stroke: () => colour("soft"), font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("grid"), width: 1 }, ticks: { stroke: () => colour("grid"), width: 1, size: 4 },
    };
    const y = { ...base, size: narrow ? 50 : 58, ...(small ? {} : { label: spec.axis, labelSize: 16 }), gap: 4, values: (u, splits) => splits.map((v) => format(spec.unit, v)) };
    if (spec.log) Object.assign(y, { splits: logSplits, filter: (u, splits) => splits });
    return [{ ...base, size: 26, gap: 3, ...(xLabel ? { label: xLabel, labelSize: 17, labelGap: 0 } : {}), space: narrow ? 44 : 60 }, y];
  };

  const seriesOptions = (spec, line) => ({
    label: line.label,
    stroke: () => colour(line.colour),
    width: line.dots ? 0 : line.thin ? 1.25 : 1.9,
    dash: line.dashed ? [5, 4] : line.dash,
    value: (u, value) => (u.cursor.idx == null ? "" : format(spec.unit, value)),
    spanGaps: Boolean(spec.marks),
    ...(line.stepped ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}),
    ...(line.dots ? { paths: () => null, points: { show: true, size: 4.5, width: 0, stroke: () => colour(line.colour), fill: () => colour(line.colour) } } : { points: { show: false } }),
  });

  /* Dots over a single limit become a series of their own, so that misses differ by colour and can be switched off. */
  const splitMisses = (spec) => {
    const [dots, ...others] = spec.series;
    if (!dots.dots || spec.limits.length !== 1) return spec;
    const limit = spec.limits[0].value, met = (v) => v != null && v < limit;
    return { ...spec, series: [
      { ...dots, label: "met the limit", values: dots.values.map((v) => (met(v) ? v : null)) },
      { ...dots, label: "missed it", colour: "bad", values: dots.values.map((v) => (met(v) ? null : v)) },
      ...others,
    ] };
  };

  /* The legend shows a line as it is drawn, dashes and all. */
  const swatch = (line) => {
    const dash = line.dashed ? [5, 4] : line.dash;
    if (!dash) return colour(line.colour);
    let at = 0;
    const stops = dash.map((length, i) => `${i % 2 ? "transparent" : colour(line.colour)} ${at}px ${(at += length)}px`);
    return `repeating-linear-gradient(90deg, ${stops.join(", ")})`;
  };

  /* -- building -- */
  const build = (group, given, width, xLabel, small) => {
    const spec = splitMisses(given), host = document.querySelector(`[data-chart="${spec.key}"]`);
    const time = group === "timeline", narrow = width < NARROW;
    host.textContent = "";
    const chart = new uPlot({
      width, height: small ? SMALL_HEIGHT : time ? TIME_HEIGHT + (xLabel ? 17 : 0) : CURVE_HEIGHT,
      padding: [small ? 8 : 17, 10, 0, 0],
      legend: { live: true, markers: { width: 0, fill: (u, i) => swatch(spec.series[i - 1]) } },
      cursor: {
        sync: { key: "pinchpoint-" + group, setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
        drag: { x: time, y: false, setScale: time, dist: 4 },
        bind: { dblclick: () => () => { if (time) zoomTo(full); return null; } },
        points: { size: 6 },
        y: false,
      },
      scales: { x: { time: false }, y: { distr: spec.log ? 3 : 1, range: yRange(spec) } },
      axes: axes(spec, xLabel, narrow, small),
      series: [{ label: xLabel || "t" }, ...spec.series.map((line) => seriesOptions(spec, line))],
      hooks: {
        drawClear: [time ? stageBands(small) : capacityBand(spec)],
        draw: [limitLines(spec), ...(time ? [] : [capacityLabel(spec), decisionMarks(spec)])],
        setScale: time ? [(u, key) => { if (key === "x") zoomTo(u.scales.x); }] : [],
        setCursor: time ? [read] : [],
      },
    }, [spec.x, ...spec.series.map((line) => (spec.on_line ? line.values.map((v, i) => (spec.on_line[i] ? v : null)) : line.values))], host);
    chart.setScale("x", time ? zoom : { min: 0, max: Math.max(...spec.x) * 1.08 });
    chart.key = spec.key;
    charts[group].push(chart);
  };

  /* One zoom for the whole timeline. uPlot reports its own changes back, so an unchanged range ends the round. */
  const zoomTo = ({ min, max }) => {
    if (min == null || (min === zoom.min && max === zoom.max)) return;
    zoom = { min, max };
    charts.timeline.forEach((chart) => {
      if (chart.scales.x.min !== min || chart.scales.x.max !== max) chart.setScale("x", { min, max });
    });
    showZoom();
  };

  /* -- the bar above the timeline -- */
  const toolbar = document.querySelector(".toolbar"), readout = document.querySelector(".readout");
  const chipped = data.stages.filter((stage) => stage.kind !== "recovery");
  const stageAt = (t) => data.stages.find((stage) => t >= stage.t0 && t < stage.t1);
  const whole = () => zoom.min === full.min && zoom.max === full.max;
  const showZoom = () => {
    readout.textContent = whole() ? "whole run" : `${significant(zoom.min)} s to ${significant(zoom.max)} s`;
    document.querySelectorAll(".stage-chips button").forEach((button, i) => {
      const { t0, t1 } = chipped[i];
      button.setAttribute("aria-pressed", String(zoom.min === t0 && zoom.max === t1));
    });
  };
  const read = (u) => {
    if (u.cursor.left == null || u.cursor.left < 0) return showZoom();
    const t = u.posToVal(u.cursor.left, "x"), stage = stageAt(t);
    const decided = stage && stage.decision !== "none" ? ` (${stage.decision.replace("-", " ")})` : "";
    readout.textContent = `${t.toFixed(1)} s · ${stage ? stage.label + decided : "between steps"}`;
  };
  const buildToolbar = () => {
    const chips = document.querySelector(".stage-chips");
    chipped.forEach((stage) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = stage.kind === "search" ? stage.short : stage.kind === "warmup" ? "warm-up" : `${stage.kind} ${stage.short}`;
      button.title = stage.label;
      if (failed(stage)) button.className = "fail";
      button.addEventListener("click", () => zoomTo({ min: stage.t0, max: stage.t1 }));
      chips.append(button);
    });
    document.querySelector(".reset").addEventListener("click", () => zoomTo(full));
    toolbar.hidden = false;
  };

  const widthOf = (key) => document.querySelector(`[data-chart="${key}"]`).clientWidth;
  const buildAll = (printing) => {
    colours = {};
    Object.values(charts).forEach((group) => group.splice(0).forEach((chart) => chart.destroy()));
    const width = (spec) => (printing ? PRINT_WIDTH : widthOf(spec.key));
    data.curve.forEach((spec) => build("curve", spec, width(spec), spec.x_label));
    [data.timeline, ...data.layers.map((layer) => layer.charts)].forEach((specs) =>
      specs.forEach((spec, i) => build("timeline", spec, width(spec), i === specs.length - 1 ? "seconds since the start of the run" : "")));
    if (!printing) document.querySelectorAll("details[data-layer][open]").forEach(buildMore);
  };
  /* Folded charts are built when they are first looked at: there can be hundreds. */
  const buildMore = (details) => {
    const layer = data.layers.find((each) => each.key === details.dataset.layer);
    if (charts.timeline.some((chart) => chart.key === layer.more[0].key)) return;
    layer.more.forEach((spec) => build("timeline", spec, widthOf(spec.key), "", true));
  };
  document.querySelectorAll("details[data-layer]").forEach((details) =>
    details.addEventListener("toggle", () => { if (details.open) buildMore(details); }));

  buildToolbar();
  buildAll(false);
  showZoom();
  let width = document.documentElement.clientWidth, pending = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => {
      if (document.documentElement.clientWidth === width) return;
      width = document.documentElement.clientWidth;
      Object.values(charts).forEach((group) => group.forEach((chart) => {
        const room = widthOf(chart.key);
        if (room) chart.setSize({ width: room, height: chart.height });
      }));
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => buildAll(false));
  addEventListener("beforeprint", () => buildAll(true));
  addEventListener("afterprint", () => buildAll(false));
})();
