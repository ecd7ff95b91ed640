// Sets the chosen theme before the first paint, so that a dark room stays dark. Nothing else may stand here: it blocks.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage can be forbidden: then the system's theme it is.
}
document.documentElement.classList.add("has-script");
