// Questions to the operator: the token, and whether to go on. Each gives the answer as a promise.
import { change, hasToken, setToken } from "./api.js";
import { make, setText } from "./dom.js";
import { t } from "./i18n.js";

/** Shows a modal dialog until it closes; the value that it closed with, "" for Escape. */
function show(title, buttons, ...content) {
  return new Promise((resolve) => {
    const heading = make("h2", { id: "dialog-title" }, title);
    const form = make("form", { method: "dialog" }, heading, ...content, make("div", { class: "buttons" }, ...buttons));
    const dialog = make("dialog", { "aria-labelledby": "dialog-title" }, form);
    const before = document.activeElement;
    dialog.addEventListener("close", () => {
      const value = dialog.returnValue;
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve(value);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(""); });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close(event.submitter?.value ?? "");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// No submit button: Enter in a field presses the first of those, and must not cancel.
const leaveButton = (text) => make("button", { type: "button", onclick: (event) => event.target.closest("dialog").close("") }, text);
const cancelButton = () => leaveButton(t("cancel"));

/** Whether the operator wants it. `subject`: what it is about, an element. */
export async function confirm(title, text, subject, action) {
  const value = await show(title, [cancelButton(), make("button", { type: "submit", value: "yes", class: "danger" }, action)],
    make("p", {}, text), make("div", { class: "subject", tabindex: "0" }, subject));
  return value === "yes";
}

/** Something to read, with what could be done to it. The value of the button that was pressed. */
export const tell = (title, content, ...buttons) =>
  show(title, [leaveButton(t("close")), ...buttons], content);

/** Asks for the token until the right one is there. False: the operator would rather not. */
export async function askToken() {
  let complaint = "";
  for (;;) {
    const input = make("input", {
      id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-hint token-wrong",
      "aria-invalid": complaint ? "true" : null,
    });
    const value = await show(t("token.title"), [cancelButton(), make("button", { type: "submit", value: "yes", class: "main" }, t("token.use"))],
      make("p", { id: "token-hint" }, t("token.hint"), " ", make("code", {}, "accelctl admin token")),
      make("label", { for: "token" }, t("token.label")), input,
      make("p", { id: "token-wrong", class: "complaint", role: "alert" }, complaint));
    if (value !== "yes") return false;
    setToken(input.value.trim().replace(/[^\x21-\x7e]/g, ""));
    try {
      await change("/api/token", {});
      return true;
    } catch (error) {
      setToken("");
      complaint = t(`refused.${error.kind}`) === `refused.${error.kind}` ? error.message : t(`refused.${error.kind}`);
    }
  }
}

let forgetting;

/** Says something for a while, below. */
export function say(text, isBad = false) {
  const place = document.getElementById("said");
  place.classList.toggle("bad", isBad);
  setText(place, text);
  clearTimeout(forgetting);
  forgetting = setTimeout(() => setText(place, ""), 8000);
}

/** Gives a change to the box, asking for the token first where there is none. Null where that came to nothing. */
export async function carryOut(path, given) {
  if (!hasToken() && !(await askToken())) return null;
  try {
    return await change(path, given);
  } catch (error) {
    if (error.kind === "token-wrong") setToken("");
    const known = t(`refused.${error.kind}`);
    say(known === `refused.${error.kind}` ? t("refused", { why: error.message }) : known, true);
    return null;
  } finally {
    document.dispatchEvent(new Event("token"));
  }
}
