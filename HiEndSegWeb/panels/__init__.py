"""The panel's sections, one file each. A section has a name, a title, `build()` inside the page, and `refresh()`."""
