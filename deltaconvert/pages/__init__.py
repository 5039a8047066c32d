"""Reports as one self-contained HTML page each: tables, plots and pictures of graphs."""
