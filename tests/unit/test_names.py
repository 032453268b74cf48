from refsam.system.names import normalized


def test_names_that_print_alike_are_equal():
    composed, decomposed = "Gr\u00fcn_\u00e9.tif", "Gru\u0308n_e\u0301.tif"
    assert composed != decomposed
    assert normalized(composed) == normalized(decomposed) == composed
