"use strict";
// Rollouts of a run, from plain data. Texts of data and models are put in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const sections = data.sections, waiting = {};
  const at = (id) => document.getElementById(id);
  if (!data.index.length) return;

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in made && typeof value !== "string") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // ---- rollouts that lie beside the page

  window.mmrlRollouts = (section) => {
    sections[section.name] = section;
    (waiting[section.name] || []).forEach((resume) => resume(section));
  };

  function load(name) {
    if (sections[name]) return Promise.resolve(sections[name]);
    return new Promise((resume) => {
      (waiting[name] = waiting[name] || []).push(resume);
      const script = make("script", { src: `report/${name}.js` });
      script.onerror = () => resume(null);
      document.head.append(script);
    });
  }

  // ---- what is shown of a group

  const known = (group) => group.members.map((m) => m.reward).filter((r) => r !== null);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / (values.length || 1);
  const spread = (group) => (known(group).length ? Math.max(...known(group)) - Math.min(...known(group)) : 0);
  const longest = (group) => Math.max(...group.members.map((m) => m.length || 0));

  const orders = {
    saved: () => 0,
    spread: (a, b) => spread(b) - spread(a),
    high: (a, b) => mean(known(b)) - mean(known(a)),
    low: (a, b) => mean(known(a)) - mean(known(b)),
    long: (a, b) => longest(b) - longest(a),
  };
  const worth = (member) => (member.reward === null ? -Infinity : member.reward);
  const memberOrders = {
    high: (a, b) => worth(b) - worth(a),
    low: (a, b) => worth(a) - worth(b),
    long: (a, b) => (b.length || 0) - (a.length || 0),
  };

  function passes(group, section) {
    const rewards = section.groups.flatMap(known);
    const every = (value) => known(group).length > 0 && known(group).every((r) => r === value);
    const tests = {
      all: () => true,
      mixed: () => spread(group) > 0,
      best: () => every(Math.max(...rewards)),
      worst: () => every(Math.min(...rewards)),
      unscored: () => group.members.some((m) => m.reward === null),
      cut: () => group.members.some((m) => m.finish === "length"),
    };
    const words = at("search").value.toLowerCase();
    const texts = [group.prompt, group.solution || "", ...group.members.map(textOf)];
    return tests[at("filter").value]() && texts.some((text) => text.toLowerCase().includes(words));
  }

  const textOf = (member) => member.output ?? member.actions.map((a) => a[0]).join("");

  function picture(image, alt) {
    const shown = make("img", { src: image.small, alt, loading: "lazy" });
    if (image.size && Math.max(...image.size) <= 128) shown.className = "tiny";
    shown.onclick = () => enlarge(image);
    return shown;
  }

  function enlarge(image) {
    const [large, note] = at("large").children;
    const size = image.size ? `${image.size[0]} x ${image.size[1]}` : "";
    note.textContent = `${image.file || ""} ${size}`;
    large.onerror = () => {
      large.onerror = null;
      large.src = image.small;
      note.textContent = `${image.file} is not beside this page; this is its small copy`;
    };
    large.src = image.file || image.small;
    at("large").showModal();
  }
  at("large").onclick = () => at("large").close();

  function flipBook(frames, path) {
    const shown = make("img", { src: frames[0], alt: "frame of the prompt's clip" });
    const book = make("div", { class: "flip", title: path || "" }, shown, `▶ ${frames.length} frames`);
    let number = 0, timer = null;
    book.onclick = () => {
      if (timer) { clearInterval(timer); timer = null; return; }
      timer = setInterval(() => { number = (number + 1) % frames.length; shown.src = frames[number]; }, 350);
    };
    return book;
  }

  function tinted(share) {
    const side = share > 0 ? "--up-rgb" : "--down-rgb";
    return `rgba(var(${side}), calc(var(--tint) * ${Math.sqrt(Math.abs(share) / 100).toFixed(3)}))`;
  }

  function tokens(member, credit) {
    const box = make("div", { class: "actions" });
    for (const [label, logProb, value, share] of member.actions) {
      const span = make("span", { title: `log-prob ${logProb}${credit ? `, credit ${value}` : ""}` }, label);
      if (credit && share) span.style.background = tinted(share);
      box.append(span);
    }
    if (!member.actions.length) box.append(member.output || "");
    return foldable(box, textOf(member).length);
  }

  function foldable(box, length) {
    if (length <= 600) return [box];
    box.classList.add("folded");
    const more = make("button", { class: "more" }, `show all ${length.toLocaleString("en")} characters`);
    more.onclick = () => {
      const folded = box.classList.toggle("folded");
      more.textContent = folded ? `show all ${length.toLocaleString("en")} characters` : "fold";
    };
    return [box, more];
  }

  function bars(member) {
    const box = make("div", { class: "steps", "aria-label": "credit of each denoising step" });
    for (const [label, logProb, value, share] of member.actions) {
      const bar = make("i");
      bar.style.background = `var(${share > 0 ? "--up" : "--down"})`;
      bar.style.height = `${Math.abs(share) / 2}%`;
      bar.style[share > 0 ? "bottom" : "top"] = "50%";
      box.append(make("span", { title: `${label}: log-prob ${logProb}, credit ${value}` }, bar));
    }
    const ends = member.actions.length ? [member.actions[0][0], member.actions[member.actions.length - 1][0]] : [];
    return [box, make("div", { class: "ends" }, ...ends.map((end) => make("span", {}, end)))];
  }

  function film(each, images) {
    const settings = { controls: true, loop: true, muted: true, playsInline: true, preload: "none" };
    return make("video", { ...settings, src: each.played || each.file, poster: images.length ? images[0].small : "" });
  }

  function answer(member, credit) {
    const box = make("div", { class: "member" });
    const pictured = member.images.length || member.films.length || member.sounds.length;
    member.sounds.forEach((sound) => box.append(make("audio", { controls: true, src: sound })));
    member.films.forEach((each) => box.append(film(each, member.images)));
    if (member.films.length) {
      const strip = member.images.map((image) => picture(image, "frame of the generated video"));
      box.append(make("div", { class: "strip" }, ...strip));
    } else member.images.forEach((image) => box.append(picture(image, "generated image")));
    if (pictured && member.output) box.append(make("div", { class: "said" }, member.output));
    if (pictured && credit) box.append(...bars(member));
    if (!pictured) box.append(...tokens(member, credit));
    if (member.said) {
      const turns = member.said.map((part) => make("div", {}, make("b", {}, `${part.who}: `), part.text));
      box.append(make("details", { class: "scores" }, make("summary", {}, `${turns.length} turns`), ...turns));
    }
    const parts = Object.entries(member.components);
    const shown = (value) => (value === null ? "–" : Number(value.toPrecision(3)));
    const named = parts.length > 1 ? parts.map(([name, value]) => ` · ${name} ${shown(value)}`).join("") : "";
    const cut = member.finish === "length" ? " · cut at the length limit" : "";
    const reward = member.reward === null ? "unscored" : `reward ${member.reward.toFixed(3)}`;
    const origin = member.origin ? ` · ${member.origin}` : "";
    const long = pictured || !member.length ? "" : ` · ${member.length} actions`;
    box.append(make("div", { class: "scores" }, make("b", {}, reward), named + long + cut + origin));
    return box;
  }

  function groupBox(group, section, open) {
    const rewards = known(group);
    const range = rewards.length ? `reward ${mean(rewards).toFixed(3)} on average, ${Math.min(...rewards).toFixed(3)} to ${Math.max(...rewards).toFixed(3)}` : "no answer scored";
    const pictured = group.members.some((m) => m.images.length || m.sounds.length);
    const head = make("summary", {}, make("span", { class: "prompt" }, group.prompt));
    if (group.solution !== null) head.append(make("div", { class: "solution" }, `solution: ${group.solution}`));
    head.append(make("div", { class: "range" }, `${group.members.length} ${group.members.length === 1 ? "answer" : "answers"}, ${range}`));
    const box = make("details", { class: "group" }, head);
    box.open = open;
    const media = group.media.map((image) => picture(image, pictured ? "condition image" : "prompt image"));
    if (group.frames.length) media.push(flipBook(group.frames, group.clips.join(", ")));
    else group.clips.forEach((path) => media.push(make("span", { class: "solution" }, `clip ${path}`)));
    if (media.length) box.append(make("div", { class: "media" }, ...media));
    const ordered = [...group.members].sort(memberOrders[at("members").value]);
    box.append(make("div", { class: "members" }, ...ordered.map((m) => answer(m, section.credit))));
    return box;
  }

  function histogram(section) {
    const rewards = section.groups.flatMap(known);
    if (!rewards.length) return "";
    const low = Math.min(...rewards), high = Math.max(...rewards), count = low === high ? 1 : 10;
    const bins = Array(count).fill(0);
    rewards.forEach((r) => { bins[Math.min(count - 1, Math.floor(((r - low) / (high - low || 1)) * count))] += 1; });
    const bars = bins.map((n, i) => {
      const from = low + ((high - low) * i) / count;
      const bar = make("i", { title: `${n} answers from ${from.toFixed(3)}` });
      bar.style.height = `${(100 * n) / Math.max(...bins)}%`;
      return bar;
    });
    return make("div", { class: "bar" }, `rewards, ${low.toFixed(2)} to ${high.toFixed(2)}`, make("span", { class: "histogram" }, ...bars));
  }

  function column(section, groups, name) {
    if (!section) return make("div", {}, make("p", { class: "note" }, `${name} lies in the folder report/, which is not beside this page`));
    const boxes = groups.map((group, number) => (group ? groupBox(group, section, number < 6) : make("p", { class: "note" }, "this prompt was not saved here")));
    return make("div", { "data-section": name }, make("h3", {}, section.title), histogram(section), ...boxes);
  }

  async function show() {
    const names = [at("left").value, at("right").value].filter(Boolean);
    const [left, right] = await Promise.all(names.map(load));
    const chosen = left ? left.groups.filter((g) => passes(g, left)).sort(orders[at("order").value]) : [];
    const same = (group) => right.groups.find((other) => other.id === group.id) || null;
    const columns = [column(left, chosen, names[0])];
    if (names.length > 1) columns.push(column(right, right ? chosen.map(same) : [], names[1]));
    at("sides").className = names.length > 1 ? "sides two" : "sides";
    at("sides").replaceChildren(...columns);
    at("count").textContent = left ? `${chosen.length} of ${left.groups.length} groups` : "";
    at("key").hidden = !(left && left.credit);
    remember();
  }

  // ---- what was chosen, kept in the address so that a page that reads itself again shows the same

  const controls = ["left", "right", "filter", "order", "members", "search"];
  function remember() {
    const state = Object.fromEntries(controls.map((id) => [id, at(id).value]));
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  const steps = data.index.filter((s) => s.name.startsWith("step"));
  const evaluations = data.index.filter((s) => s.name.startsWith("eval"));
  for (const each of data.index) {
    at("left").append(make("option", { value: each.name }, each.title));
    at("right").append(make("option", { value: each.name }, each.title));
  }
  at("right").prepend(make("option", { value: "" }, "nothing"));
  at("right").value = "";
  at("left").value = (steps.length ? steps : data.index).slice(-1)[0].name;
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    if (controls.includes(id)) at(id).value = value;
  }
  if (!at("left").value) at("left").value = data.index[data.index.length - 1].name;
  controls.forEach((id) => at(id).addEventListener("input", show));
  at("before-after").hidden = evaluations.length < 2;
  at("before-after").onclick = () => {
    at("left").value = evaluations[0].name;
    at("right").value = evaluations[evaluations.length - 1].name;
    show();
  };
  at("fold").onclick = () => {
    const boxes = [...document.querySelectorAll(".group")];
    const fold = boxes.some((box) => box.open);
    boxes.forEach((box) => { box.open = !fold; });
    at("fold").textContent = fold ? "unfold all" : "fold all";
  };
  show();

  const refresh = Number(document.body.dataset.refresh);
  if (refresh) setTimeout(() => location.reload(), 1000 * refresh);
})();
