"""Language models behind one interface: in process, or over HTTP."""
