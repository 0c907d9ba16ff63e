() => {
  // Ctrl/Cmd+Enter presses the primary button of the open tab.
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "Enter") return;
    const panel = document.querySelector('[role="tabpanel"]:not([style*="display: none"])');
    const button = panel && panel.querySelector("button.primary:not([disabled])");
    if (button) { event.preventDefault(); button.click(); }
  });
}
