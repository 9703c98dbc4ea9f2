"use strict";
(() => {
  const island = document.getElementById("flow-data");
  if (!island) return;
  const data = JSON.parse(island.textContent);
  const words = data.words;
  const fates = ["escaped", "passed", "dropped"];
  const fateWords = ["got through untranslated", "got through", "dropped"];
  const step = 20;

  // Every text goes into the page by textContent, so no value can become markup.
  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  }
  function draw(tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  }
  const number = (value) => value.toLocaleString("en-US");
  const plural = (value, noun) => number(value) + " " + noun + (value === 1 ? "" : "s");
  const clock = (ms) => new Date(ms).toISOString().slice(data.days ? 5 : 11, 23).replace("T", " ");

  const flows = data.flows.map((row, index) => ({
    index, proto: words[row[0]], one: row[1], other: row[2], service: row[3], packets: row[4],
    fates: row[5], resets: row[6], reasons: row[7], nat: words[row[8]], state: words[row[9]],
    furthest: row[10], first: row[11], last: row[12], leftOut: row[13], events: row[14],
    text: null,
  }));
  function textOf(flow) {
    if (flow.text === null) {
      flow.text = [flow.proto, flow.one, flow.other, flow.service, flow.nat, flow.state,
        ...flow.reasons.map(([word]) => words[word])].join(" ").toLowerCase();
    }
    return flow.text;
  }

  const table = document.getElementById("flows");
  const body = table.tBodies[0];
  const pattern = document.getElementById("pattern");
  const reason = document.getElementById("reason");
  const fate = document.getElementById("fate");
  const told = document.getElementById("told");
  const more = document.getElementById("more");
  const keys = {
    flow: (flow) => flow.one + flow.other, service: (flow) => flow.service,
    reason: (flow) => (flow.reasons.length ? words[flow.reasons[0][0]] : ""),
    packets: (flow) => flow.packets, escaped: (flow) => flow.fates[0],
    dropped: (flow) => flow.fates[2], resets: (flow) => flow.resets,
    furthest: (flow) => flow.furthest, last: (flow) => flow.last,
  };
  const view = { key: "packets", down: true, shown: step, open: null, found: [] };

  function select() {
    const asked = pattern.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    view.found = flows.filter((flow) =>
      (reason.value === "" || flow.reasons.some(([word]) => words[word] === reason.value))
      && (fate.value === "" || (fate.value === "resets" ? flow.resets : flow.fates[fate.value]) > 0)
      && asked.every((part) => textOf(flow).includes(part)));
    const key = keys[view.key];
    const way = view.down ? -1 : 1;
    const ranked = view.found.map((flow) => [key(flow), flow]);
    ranked.sort(([a], [b]) => (a < b ? -way : a > b ? way : 0));
    view.found = ranked.map(([, flow]) => flow);
    show();
  }

  function show() {
    body.replaceChildren(...view.found.slice(0, view.shown).flatMap(rowsOf));
    more.hidden = view.found.length <= view.shown;
    told.textContent = plural(view.found.length, "flow")
      + (view.found.length > view.shown ? ", the first " + number(view.shown) + " shown" : "");
    for (const head of table.tHead.rows[0].cells) {
      if (head.dataset.key === view.key) {
        head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
      } else {
        head.removeAttribute("aria-sort");
      }
    }
  }

  function bar(flow) {
    const parts = make("span", { class: "bar", "aria-hidden": "true" });
    flow.fates.forEach((packets, index) => {
      if (packets) {
        parts.append(make("i", {
          class: fates[index], style: "width:" + (100 * packets / flow.packets).toFixed(2) + "%",
        }));
      }
    });
    return parts;
  }

  function rowsOf(flow) {
    const opened = view.open === flow.index;
    const opener = make("button", { class: "flow", type: "button", "aria-expanded": opened },
      make("code", null, flow.one), " \u2194 ", make("code", null, flow.other), " " + flow.proto);
    opener.addEventListener("click", () => {
      view.open = opened ? null : flow.index;
      show();
      body.querySelector("[data-flow=\"" + flow.index + "\"] button").focus();
    });
    const reasons = flow.reasons.map(([word, packets]) => words[word] + " " + number(packets));
    const cell = (label, name, ...content) =>
      make("td", { class: name + (content[0] === "0" ? " zero" : ""), "data-label": label }, ...content);
    const row = make("tr", { "data-flow": flow.index },
      cell("flow", "lead", opener),
      cell("service", "", make("code", null, flow.service)),
      cell("reasons", "", listed(reasons.length > 3
        ? [...reasons.slice(0, 3), "and " + (reasons.length - 3) + " more"] : reasons)),
      cell("packets", "n", make("span", null, number(flow.packets), bar(flow))),
      cell("untranslated", "n", number(flow.fates[0])),
      cell("dropped", "n", number(flow.fates[2])),
      cell("resets", "n", number(flow.resets)),
      cell("furthest off", "n", flow.furthest ? number(flow.furthest) : ""),
      cell("last", "n", clock(flow.last)));
    if (!opened) return [row];
    const detail = make("td", { colspan: table.tHead.rows[0].cells.length }, detailOf(flow));
    return [row, make("tr", { class: "open" }, detail)];
  }

  // Broken between the parts alone.
  function listed(parts) {
    const made = make("span", null);
    parts.forEach((part, index) => {
      const last = index === parts.length - 1;
      made.append(make("span", { class: "whole" }, part + (last ? "" : ",")), last ? "" : " ");
    });
    return made;
  }

  function detailOf(flow) {
    const told = [
      plural(flow.packets, "packet") + " from " + clock(flow.first) + " to " + clock(flow.last) + " UTC",
      "translation " + flow.nat, "state " + (flow.state || "unknown"),
    ];
    if (flow.resets) told.push(plural(flow.resets, "reset") + " that one of them caused");
    const made = make("div", { class: "detail" }, make("p", null, told.join(", ") + "."));
    if (!flow.events.length) {
      made.append(make("p", { class: "dim" }, "This page keeps no events of this flow."));
      return made;
    }
    const bounds = make("div", null);
    let picked = flow.events.findIndex((event) => event[13]);
    if (picked < 0) picked = 0;
    const head = ["time", "from", "flags", "seq", "ack", "bytes", "reason", "off by", "fate", "rule"];
    const rows = make("tbody", null);
    const list = make("table", { class: "reflow" },
      make("thead", null, make("tr", null, ...head.map((name) => make("th", null, name)))), rows);
    let shown = 20;
    function fill() {
      rows.replaceChildren(...flow.events.slice(0, shown).map((event, index) => {
        const pick = make("button", { class: "flow", type: "button" }, clock(event[0]));
        pick.addEventListener("click", () => { picked = index; fill(); rows.rows[index].querySelector("button").focus(); });
        const cells = [
          make("span", null, pick, event[2] > 1 ? " \u00d7" + number(event[2])
            + (event[1] ? " in " + (event[1] / 1000).toFixed(1) + " s" : "") : ""),
          event[4] ? flow.other : flow.one, words[event[5]],
          event[6] === null ? "" : String(event[6]), event[7] === null ? "" : String(event[7]),
          event[8] === null ? "" : number(event[8]),
          words[event[9]] + (event[14] ? ", answers " + words[event[14][1]] + " of " + clock(event[14][0]) : ""),
          event[12] ? number(event[12]) : "", fateWords[event[3]], words[event[10]],
        ];
        return make("tr", { "aria-selected": index === picked }, ...cells.map((content, column) =>
          make("td", { "data-label": head[column], class: column ? "" : "lead" }, content)));
      }));
      bounds.replaceChildren(...boundsOf(flow.events[picked]));
      rest.hidden = flow.events.length <= shown;
    }
    const rest = make("button", { class: "more", type: "button" }, "more events");
    rest.addEventListener("click", () => { shown += step; fill(); });
    fill();
    made.append(bounds, make("h3", null, "Events"), list, rest);
    if (flow.leftOut) {
      made.append(make("p", { class: "dim" }, plural(flow.leftOut, "later event") + " not in this page."));
    }
    const ladder = make("div", { class: "ladder" });
    made.append(make("h3", null, "Ladder"), ladder);
    new ResizeObserver(() => climb(ladder, flow)).observe(ladder);
    return made;
  }

  // The bounds of one event, each as a number line: shaded is where a packet passes.
  function boundsOf(event) {
    const made = [make("h3", null, "The packet of " + clock(event[0]) + " against the window")];
    if (!event[13]) {
      made.push(make("p", { class: "dim" }, "The window of its flow was not recorded."));
      return made;
    }
    const lines = make("div", { class: "lines" });
    for (const bound of event[13]) lines.append(lineOf(bound));
    made.push(lines);
    return made;
  }

  function lineOf([bound, room, actual, limit, upper, at, other, otherAt, span]) {
    const [numeral, question] = data.bounds[words[bound]];
    const holds = room >= 0;
    const said = holds ? "yes, " + plural(room, "byte") + " of room"
      : "no, by " + plural(-room, "byte");
    const places = [0, at];
    if (otherAt !== null) places.push(otherAt);
    if (span) places.push(...span);
    const x = spread(places);
    const picture = draw("svg", { viewBox: "0 0 100 22", preserveAspectRatio: "none", "aria-hidden": "true" });
    const edge = x.get(0);
    picture.append(
      draw("rect", { class: "inside", x: upper ? 0 : edge, y: 4, width: upper ? edge : 100 - edge, height: 14 }),
      draw("rect", { class: "frame", x: 0, y: 4, width: 100, height: 14 }));
    if (span && span[1] > span[0]) {
      picture.append(draw("rect", { class: "span", x: x.get(span[0]), y: 9, height: 4,
        width: x.get(span[1]) - x.get(span[0]) }));
    }
    if (otherAt !== null) picture.append(draw("line", { class: "other", x1: x.get(otherAt), x2: x.get(otherAt), y1: 0, y2: 22 }));
    picture.append(
      draw("line", { class: "limit", x1: edge, x2: edge, y1: 0, y2: 22 }),
      draw("line", { class: "actual", x1: x.get(at), x2: x.get(at), y1: 2, y2: 20 }));
    return make("div", { class: "line" + (holds ? "" : " broken") },
      make("div", null, numeral + ". " + question + " ", make("strong", null, said)),
      make("div", { class: "scale" }, picture),
      make("div", { class: "dim small" }, "thick: " + actual + ", line: limit " + limit
        + (other ? ", dashed: " + other : "")));
  }

  // A place from 0 to 100 for each number: in order, apart from each other, otherwise to scale.
  function spread(numbers) {
    const ordered = [...new Set(numbers)].sort((a, b) => a - b);
    const low = ordered[0], span = Math.max(ordered[ordered.length - 1] - low, 1), gap = 3;
    const places = new Map();
    let least = 6;
    ordered.forEach((value, index) => {
      const latest = 94 - (ordered.length - 1 - index) * gap;
      const place = ordered.length === 1 ? 50 : Math.max(least, Math.min(6 + 88 * (value - low) / span, latest));
      places.set(value, place);
      least = place + gap;
    });
    return places;
  }

  // The events as arrows between the two ends; a dropped packet ends in the middle.
  function climb(ladder, flow) {
    const width = Math.max(ladder.clientWidth, 200), most = 60, each = 40;
    const events = flow.events.slice(0, most);
    const picture = draw("svg", { width, height: 44 + events.length * each, role: "img",
      "aria-label": "ladder of the events of this flow" });
    const left = 8, right = width - 8;
    picture.append(draw("text", { x: left - 6, y: 14 }, flow.one),
      draw("text", { x: right + 6, y: 30, "text-anchor": "end" }, flow.other),
      draw("line", { x1: left, x2: left, y1: 20, y2: 44 + events.length * each }),
      draw("line", { x1: right, x2: right, y1: 36, y2: 44 + events.length * each }));
    events.forEach((event, index) => {
      const y = 44 + index * each + 26;
      const [from, to] = event[4] ? [right, left] : [left, right];
      const end = event[3] === 2 ? (from + to) / 2 : to;
      const way = Math.sign(to - from), kind = fates[event[3]];
      picture.append(draw("text", { x: width / 2, y: y - 7, "text-anchor": "middle" },
        clock(event[0]) + "  " + words[event[5]] + "  " + words[event[9]] + (event[2] > 1 ? " \u00d7" + number(event[2]) : "")
        + (event[14] ? "  reset it caused" : "")));
      picture.append(draw("line", { class: kind, x1: from, x2: end, y1: y, y2: y, "stroke-width": 2 }));
      picture.append(event[3] === 2
        ? draw("path", { class: kind, d: `M${end - 5},${y - 5}l10,10m0,-10l-10,10`, "stroke-width": 2 })
        : draw("path", { class: kind, d: `M${end},${y}l${-9 * way},-5v10z` }));
    });
    ladder.replaceChildren(picture);
    if (flow.events.length > most) ladder.append(make("p", { class: "dim" }, "The first " + most + " events."));
  }

  for (const head of table.tHead.rows[0].cells) {
    const sorter = make("button", { type: "button" }, head.textContent);
    sorter.addEventListener("click", () => {
      if (view.key === head.dataset.key) view.down = !view.down;
      else { view.key = head.dataset.key; view.down = head.classList.contains("n"); }
      select();
    });
    head.replaceChildren(sorter);
  }
  for (const [control, event] of [[pattern, "input"], [reason, "change"], [fate, "change"]]) {
    control.addEventListener(event, () => { view.shown = step; select(); });
  }
  more.addEventListener("click", () => { view.shown += step; show(); });
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT"].includes(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      pattern.focus();
    } else if (event.key === "Escape") {
      if (view.open !== null) {
        const back = view.open;
        view.open = null;
        show();
        const opener = body.querySelector("[data-flow=\"" + back + "\"] button");
        if (opener) opener.focus();
      } else if (pattern.value) {
        pattern.value = "";
        select();
      }
    }
  });
  for (const link of document.querySelectorAll("[data-find]")) {
    link.addEventListener("click", () => { pattern.value = link.dataset.find; view.shown = step; select(); });
  }
  document.getElementById("tools").hidden = false;
  select();
})();
