"""Reports: tables and pages for people, JSON for programs (see `record.to_json`)."""
