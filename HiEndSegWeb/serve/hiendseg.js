// What the page cannot say in its template: sending a file with progress, keys, and a connection that is lost.
(function () {
  "use strict";

  // Where a file goes, and the page's variables for progress and error.
  const TARGETS = { "/upload": ["upload_percent", "upload_error"], "/models": ["mod_percent", "mod_error"],
                    "/encoder": ["enc_percent", "enc_error"] };

  function set(name, value) { if (window.trame) window.trame.state.set(name, value); }

  function send(file, address) {
    if (!file) return;
    const [percent, error] = TARGETS[address];
    const request = new XMLHttpRequest();
    request.open("POST", address + "?name=" + encodeURIComponent(file.name));
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) set(percent, Math.floor(100 * event.loaded / event.total));
    };
    const end = (sentence) => { set(percent, -1); set(error, sentence); };
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch (problem) { answer = { error: request.responseText }; }
      end(answer.error || (request.status === 200 ? "" : "The file could not be sent."));
    };
    request.onerror = () => end("The connection broke while the file was sent; try again.");
    set(error, "");
    set(percent, 0);
    request.send(file);
  }

  document.documentElement.lang = "en";
  document.addEventListener("change", (event) => {
    const address = event.target.dataset && event.target.dataset.upload;
    if (address) { send(event.target.files[0], address); event.target.value = ""; }
  });
  document.addEventListener("click", (event) => {             // a button that stands for a hidden file field
    const button = event.target.closest && event.target.closest("[data-file]");
    if (button) document.getElementById(button.dataset.file).click();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer && event.dataTransfer.files.length) send(event.dataTransfer.files[0], "/upload");
  });

  // The page is of no use without its server, and should say so.
  let missed = 0;
  setInterval(() => {
    if (!window.trame) return;
    fetch("/favicon.ico", { cache: "no-store" }).then((answer) => answer.ok, () => false).then((there) => {
      missed = there ? 0 : missed + 1;
      const shown = document.getElementById("lost");
      if (there && shown) shown.remove();
      if (missed < 2 || shown) return;
      const lost = document.createElement("div");
      lost.id = "lost";
      lost.setAttribute("role", "alert");
      lost.style = "position: fixed; inset: 0; z-index: 9999; background: #212121ee; color: #eee; padding: 3em;" +
                   "font: 16px sans-serif";
      lost.textContent = "HiEndSeg has ended this page, or was stopped itself. What was on it is gone. ";
      const home = window.trame.state.state.home;
      if (home) {
        const link = document.createElement("a");
        link.href = location.protocol + "//" + location.hostname + ":" + home + "/";
        link.textContent = "Open a new page";
        link.style = "color: #90caf9";
        lost.append(link);
      }
      document.body.append(lost);
    });
  }, 2000);

  const KEYS = { ArrowUp: "next", ArrowDown: "previous", PageUp: "next10", PageDown: "previous10", "1": "paint",
                 "2": "erase", "3": "scissors", Escape: "none", s: "segmentation", f: "fit", w: "window",
                 "+": "larger", "-": "smaller", "?": "help" };

  function hovered() {
    return ["axial", "coronal", "sagittal"].find((name) => {
      const corner = document.getElementById("view-" + name);
      return corner && corner.parentElement.matches(":hover");
    }) || "axial";
  }

  document.addEventListener("keydown", (event) => {
    const tag = event.target.tagName;
    const writing = (tag === "INPUT" && event.target.type !== "checkbox") || tag === "TEXTAREA" ||
                    event.target.isContentEditable || event.target.closest(".v-overlay, .v-select, .v-slider");
    if (writing || event.altKey || !window.trame) return;
    const command = event.ctrlKey || event.metaKey;
    let action = null;
    if (command && event.key.toLowerCase() === "z") action = event.shiftKey ? "redo" : "undo";
    else if (command && event.key.toLowerCase() === "y") action = "redo";
    else if (!command) action = KEYS[event.key] || KEYS[event.key.toLowerCase()] || null;
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    if (action === "help") set("help_shown", true);
    else window.trame.trigger("key", [action, hovered()]);
  }, true);
})();
