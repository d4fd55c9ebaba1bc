from keras_istar._src.compat.versions import check_versions

check_versions()
