"""What results say to do: settings compared (`refsam compare`), and the one to use (`refsam recommend`)."""
