"""One kit for every HTML page: words, pictures, charts, parts, and the page that holds them."""
