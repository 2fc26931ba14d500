// What the page cannot say in its template: sending a file with progress, and keys.
(function () {
  "use strict";

  function set(name, value) { if (window.trame) window.trame.state.set(name, value); }

  function send(file) {
    if (!file) return;
    const request = new XMLHttpRequest();
    request.open("POST", "/upload?name=" + encodeURIComponent(file.name));
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) set("upload_percent", Math.round(100 * event.loaded / event.total));
    };
    const end = (sentence) => { set("upload_percent", -1); set("upload_error", sentence); };
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch (error) { answer = { error: request.responseText }; }
      end(answer.error || (request.status === 200 ? "" : "The file could not be sent."));
    };
    request.onerror = () => end("The connection broke while the file was sent; try again.");
    set("upload_error", "");
    set("upload_percent", 0);
    request.send(file);
  }

  document.addEventListener("change", (event) => {
    if (event.target.id === "open-file") { send(event.target.files[0]); event.target.value = ""; }
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });

  const KEYS = { ArrowUp: "next", ArrowDown: "previous", PageUp: "next10", PageDown: "previous10", "1": "paint",
                 "2": "erase", "3": "scissors", Escape: "none", s: "segmentation" };
  document.addEventListener("keydown", (event) => {
    const tag = event.target.tagName;
    const writing = tag === "INPUT" || tag === "TEXTAREA" || event.target.isContentEditable ||
                    event.target.closest(".v-overlay, .v-select, .v-slider");
    if (writing || event.altKey || !window.trame) return;
    const command = event.ctrlKey || event.metaKey;
    let action = null;
    if (command && event.key.toLowerCase() === "z") action = event.shiftKey ? "redo" : "undo";
    else if (command && event.key.toLowerCase() === "y") action = "redo";
    else if (!command) action = KEYS[event.key] || null;
    if (action) { event.preventDefault(); window.trame.trigger("key", [action]); }
  });
})();
