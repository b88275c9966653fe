"""Functions of PostgreSQL and of its extensions whose effects are known by their names."""

from __future__ import annotations

__all__ = ["POSTGIS", "READS", "WRITES"]

# Those that PostgreSQL marks stable or immutable, and volatile ones that tell of the server,
# of time or of chance. Left out are those that run a query given as text, or give the transaction
# an id.
_READS = """
    abs acos acosd acosh age any_value area array_agg array_append array_dims array_fill
    array_length array_lower array_ndims array_position array_positions array_prepend array_remove
    array_replace array_reverse array_sample array_shuffle array_sort array_to_json array_to_string
    array_to_tsvector array_upper ascii asin asind asinh atan atan2 atan2d atand atanh avg bit
    bit_and bit_count bit_length bit_or bit_xor bool bool_and bool_or bound_box box bpchar
    broadcast cardinality casefold cash_words cbrt ceil ceiling center char char_length
    character_length chr cidr circle clock_timestamp col_description concat concat_ws convert
    convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c
    cume_dist current_database current_query current_schema current_schemas current_setting
    current_user date date_add date_bin date_part date_subtract date_trunc datemultirange daterange
    decode degrees dense_rank diagonal diameter div encode enum_first enum_last enum_range erf erfc
    error_on_null every exp extract factorial family first_value float4 float8 floor format
    format_type gamma gcd gen_random_uuid generate_series generate_subscripts get_bit get_byte
    get_current_ts_config getdatabaseencoding has_any_column_privilege has_column_privilege
    has_database_privilege has_foreign_data_wrapper_privilege has_function_privilege
    has_language_privilege has_largeobject_privilege has_parameter_privilege has_schema_privilege
    has_sequence_privilege has_server_privilege has_table_privilege has_tablespace_privilege
    has_type_privilege height host hostmask icu_unicode_version in_range inet_client_addr
    inet_client_port inet_merge inet_same_family inet_server_addr inet_server_port initcap int2
    int4 int4multirange int4range int8 int8multirange int8range interval is_normalized isclosed
    isempty isfinite ishorizontal isopen isparallel isperp isvertical json_agg json_agg_strict
    json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_extract_path json_extract_path_text json_object
    json_object_agg json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict
    json_object_keys json_populate_record json_populate_recordset json_strip_nulls json_to_record
    json_to_recordset json_to_tsvector json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
    jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict
    jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz
    jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first
    jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record jsonb_populate_recordset
    jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset
    jsonb_to_tsvector jsonb_typeof justify_days justify_hours justify_interval lag last_value lcm
    lead left length lgamma like line ln log log10 lower lower_inc lower_inf lpad lseg ltrim
    macaddr macaddr8 macaddr8_set7bit make_date make_interval make_time make_timestamp
    make_timestamptz masklen max md5 min min_scale mod mode money multirange multirange_minus_multi
    mxid_age name netmask network normalize notlike now npoints nth_value ntile num_nonnulls
    num_nulls numeric nummultirange numnode numrange obj_description octet_length oid oid8 overlaps
    overlay parse_ident path pclose percent_rank percentile_cont percentile_disc
    pg_available_extension_versions pg_available_extensions pg_backend_pid pg_basetype
    pg_blocking_pids pg_client_encoding pg_collation_actual_version pg_collation_for
    pg_collation_is_visible pg_column_compression pg_column_is_updatable pg_column_size
    pg_column_toast_chunk_id pg_config pg_control_checkpoint pg_control_init pg_control_recovery
    pg_control_system pg_conversion_is_visible pg_current_snapshot pg_current_wal_flush_lsn
    pg_current_wal_insert_lsn pg_current_wal_lsn pg_current_xact_id_if_assigned
    pg_database_collation_actual_version pg_database_size pg_describe_object pg_encoding_max_length
    pg_encoding_to_char pg_function_is_visible pg_get_acl pg_get_constraintdef pg_get_expr
    pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments
    pg_get_function_result pg_get_function_sqlbody pg_get_functiondef pg_get_indexdef
    pg_get_keywords pg_get_multixact_stats pg_get_object_address pg_get_partition_constraintdef
    pg_get_partkeydef pg_get_publication_tables pg_get_ruledef pg_get_serial_sequence
    pg_get_statisticsobjdef pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions
    pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_get_wal_replay_pause_state pg_has_role
    pg_identify_object pg_identify_object_as_address pg_index_column_has_property
    pg_index_has_property pg_indexam_has_property pg_indexam_progress_phasename pg_indexes_size
    pg_input_error_info pg_input_is_valid pg_is_in_recovery pg_is_other_temp_schema
    pg_is_wal_replay_paused pg_jit_available pg_last_committed_xact pg_last_wal_receive_lsn
    pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_listening_channels pg_lock_status
    pg_lsn pg_my_temp_schema pg_notification_queue_usage pg_opclass_is_visible
    pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_ancestors
    pg_partition_root pg_partition_tree pg_postmaster_start_time pg_prepared_xact
    pg_relation_filenode pg_relation_filepath pg_relation_is_updatable pg_relation_size
    pg_safe_snapshot_blocking_pids pg_sequence_last_value pg_sequence_parameters
    pg_settings_get_flags pg_show_all_settings pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for
    pg_sleep_until pg_snapshot_xip pg_snapshot_xmax pg_snapshot_xmin pg_split_walfile_name
    pg_stat_get_activity pg_stat_get_backend_activity pg_stat_get_backend_pid
    pg_stat_get_dead_tuples pg_stat_get_last_analyze_time pg_stat_get_last_vacuum_time
    pg_stat_get_live_tuples pg_stat_get_numscans pg_stat_get_progress_info
    pg_stat_get_snapshot_timestamp pg_stat_get_wal_receiver pg_stat_get_wal_senders
    pg_statistics_obj_is_visible pg_table_is_visible pg_table_size pg_tablespace_databases
    pg_tablespace_location pg_tablespace_size pg_timezone_abbrevs pg_timezone_names
    pg_total_relation_size pg_trigger_depth pg_ts_config_is_visible pg_ts_dict_is_visible
    pg_ts_parser_is_visible pg_ts_template_is_visible pg_type_is_visible pg_typeof
    pg_visible_in_snapshot pg_wal_lsn_diff pg_walfile_name pg_walfile_name_offset
    pg_xact_commit_timestamp pg_xact_status phraseto_tsquery pi plainto_tsquery point polygon popen
    position pow power querytree quote_ident quote_literal quote_nullable radians radius random
    random_normal range_agg range_intersect_agg range_merge range_minus_multi rank regclass
    regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse right round
    row_number row_security_active row_to_json rpad rtrim scale session_user set_bit set_byte
    set_masklen setweight sha224 sha256 sha384 sha512 shobj_description sign sin sind sinh slope
    split_part sqrt statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array
    string_to_table strip strpos substr substring sum system_user tan tand tanh text tid_block
    tid_offset time timeofday timestamp timestamptz timetz timezone to_ascii to_bin to_char to_date
    to_hex to_json to_jsonb to_number to_oct to_regclass to_regcollation to_regdatabase
    to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype
    to_regtypemod to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array
    trim_scale trunc ts_debug ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank ts_rank_cd
    ts_token_type tsmultirange tsquery_phrase tsrange tstzmultirange tstzrange tsvector_to_array
    txid_current_if_assigned txid_current_snapshot txid_snapshot_xip txid_snapshot_xmax
    txid_snapshot_xmin txid_status txid_visible_in_snapshot unicode_assigned unicode_version unistr
    unnest upper upper_inc upper_inf uuid uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7
    var_pop var_samp varbit varchar variance version websearch_to_tsquery width width_bucket xid
    xml xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment
    xmlexists xmltext xpath xpath_exists
"""
# Of earthdistance, hstore, fuzzystrmatch, ltree, pg_trgm, unaccent, pgcrypto, uuid-ossp, pgvector
# and PostGIS, whose ST_ functions calls.py knows by the prefix. Names that a project could give
# to a function of its own are left out.
_READS_OF_EXTENSIONS = """
    earth_box earth_distance ll_to_earth akeys avals hstore hstore_to_array hstore_to_json
    hstore_to_json_loose hstore_to_jsonb hstore_to_jsonb_loose hstore_to_matrix skeys svals
    daitch_mokotoff dmetaphone dmetaphone_alt levenshtein levenshtein_less_equal metaphone soundex
    lca ltree2text nlevel subltree subpath text2ltree similarity show_limit show_trgm
    strict_word_similarity word_similarity unaccent armor crypt dearmor decrypt decrypt_iv digest
    encrypt encrypt_iv gen_random_bytes gen_salt hmac pgp_key_id pgp_pub_decrypt
    pgp_pub_decrypt_bytea pgp_pub_encrypt pgp_pub_encrypt_bytea pgp_sym_decrypt
    pgp_sym_decrypt_bytea pgp_sym_encrypt pgp_sym_encrypt_bytea uuid_generate_v1 uuid_generate_v1mc
    uuid_generate_v3 uuid_generate_v4 uuid_generate_v5 uuid_nil uuid_ns_dns uuid_ns_oid uuid_ns_url
    uuid_ns_x500 binary_quantize cosine_distance halfvec hamming_distance inner_product
    jaccard_distance l1_distance l2_distance l2_norm l2_normalize sparsevec subvector vector
    vector_dims vector_norm box2d box3d geography geometry geometrytype postgis_full_version
    postgis_geos_version postgis_lib_version postgis_proj_version postgis_version
"""
_WRITES = """
    brin_desummarize_range brin_summarize_new_values brin_summarize_range gin_clean_pending_list
    lo_close lo_creat lo_create lo_export lo_from_bytea lo_get lo_import lo_lseek lo_lseek64
    lo_open lo_put lo_tell lo_tell64 lo_truncate lo_truncate64 lo_unlink loread lowrite nextval
    pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_cancel_backend pg_create_restore_point
    pg_current_xact_id pg_export_snapshot pg_log_backend_memory_contexts pg_logical_emit_message
    pg_notify pg_promote pg_reload_conf pg_rotate_logfile pg_stat_clear_snapshot
    pg_stat_force_next_flush pg_stat_reset pg_stat_reset_replication_slot pg_stat_reset_shared
    pg_stat_reset_single_function_counters pg_stat_reset_single_table_counters pg_stat_reset_slru
    pg_stat_reset_subscription_stats pg_switch_wal pg_terminate_backend pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared pg_wal_replay_pause pg_wal_replay_resume setval txid_current
"""

# After "st_": what PostGIS 3.3 has, and what came since.
_POSTGIS = """
    3dclosestpoint 3ddfullywithin 3ddistance 3ddwithin 3dextent 3dintersects 3dlength
    3dlineinterpolatepoint 3dlongestline 3dmakebox 3dmaxdistance 3dperimeter 3dshortestline
    addband addmeasure addpoint affine angle approxcount approxhistogram approxquantile
    approxsummarystats area area2d asbinary asencodedpolyline asewkb asewkt asflatgeobuf
    asgdalraster asgeobuf asgeojson asgml ashexewkb ashexwkb asjpeg askml aslatlontext asmarc21
    asmvt asmvtgeom aspect aspng asraster asrasteragg assvg astext astiff astwkb aswkb asx3d
    azimuth band bandfilesize bandfiletimestamp bandisnodata bandmetadata bandnodatavalue bandpath
    bandpixeltype bdmpolyfromtext bdpolyfromtext boundary boundingdiagonal box2dfromgeohash buffer
    buildarea centroid chaikinsmoothing cleangeometry clip clipbybox2d closestpoint
    closestpointofapproach clusterdbscan clusterintersecting clusterkmeans clusterwithin collect
    collectionextract collectionhomogenize colormap combinebbox concavehull contains
    containsproperly contour convexhull coorddim count countagg coverageclean coverageinvalidedges
    coveragesimplify coverageunion coveredby covers cpawithin createoverview crosses curven
    curvetoline delaunaytriangles dfullywithin difference dimension disjoint distance distancecpa
    distancesphere distancespheroid distinct4ma dump dumpaspolygons dumppoints dumprings
    dumpsegments dumpvalues dwithin endpoint envelope equals estimatedextent expand extent
    exteriorring filterbym findextent flipcoordinates force2d force3d force3dm force3dz force4d
    forcecollection forcecurve forcepolygonccw forcepolygoncw forcerhr forcesfs frechetdistance
    fromflatgeobuf fromflatgeobuftotable fromgdalraster gdaldrivers generatepoints geogfromtext
    geogfromwkb geographyfromtext geohash geomcollfromtext geomcollfromwkb geometricmedian
    geometryfromtext geometryn geometrytype geomfromewkb geomfromewkt geomfromgeohash
    geomfromgeojson geomfromgml geomfromkml geomfrommarc21 geomfromtext geomfromtwkb geomfromwkb
    georeference geotransform gmltosql grayscale hasarc hasm hasnoband hasz hausdorffdistance
    height hexagon hexagongrid hillshade histogram interiorringn interpolatepoint
    interpolateraster intersection intersectionfractions intersects invdistweight4ma
    inversetransformpipeline isclosed iscollection iscoveragetile isempty ispolygonccw ispolygoncw
    isring issimple isvalid isvaliddetail isvalidreason isvalidtrajectory largestemptycircle
    length length2d length2dspheroid lengthspheroid letters linecrossingdirection lineextend
    linefromencodedpolyline linefrommultipoint linefromtext linefromwkb lineinterpolatepoint
    lineinterpolatepoints linelocatepoint linemerge linestringfromwkb linesubstring linetocurve
    locatealong locatebetween locatebetweenelevations longestline m makebox2d makeemptycoverage
    makeemptyraster makeenvelope makeline makepoint makepointm makepolygon makevalid mapalgebra
    mapalgebraexpr mapalgebrafct mapalgebrafctngb max4ma maxdistance maximuminscribedcircle
    mean4ma memcollect memsize memunion metadata min4ma minconvexhull mindist4ma
    minimumboundingcircle minimumboundingradius minimumclearance minimumclearanceline
    minpossiblevalue mlinefromtext mlinefromwkb mpointfromtext mpointfromwkb mpolyfromtext
    mpolyfromwkb multi multilinefromwkb multilinestringfromtext multipointfromtext
    multipointfromwkb multipolyfromwkb multipolygonfromtext ndims nearestvalue neighborhood node
    normalize notsamealignmentreason npoints nrings numbands numcurves numgeometries
    numinteriorring numinteriorrings numpatches numpoints offsetcurve orderingequals
    orientedenvelope overlaps patchn perimeter perimeter2d pixelascentroid pixelascentroids
    pixelaspoint pixelaspoints pixelaspolygon pixelaspolygons pixelheight pixelofvalue pixelwidth
    point pointfromgeohash pointfromtext pointfromwkb pointinsidecircle pointm pointn
    pointonsurface points pointz pointzm polyfromtext polyfromwkb polygon polygonfromtext
    polygonfromwkb polygonize project quantile quantizecoordinates range4ma rastertoworldcoord
    rastertoworldcoordx rastertoworldcoordy rastfromhexwkb rastfromwkb reclass reduceprecision
    relate relatematch removeirrelevantpointsforview removepoint removerepeatedpoints
    removesmallparts resample rescale resize reskew retile reverse rotate rotatex rotatey rotatez
    rotation roughness samealignment scale scalex scaley scroll segmentize setbandindex
    setbandisnodata setbandnodatavalue setbandpath seteffectivearea setgeoreference
    setgeotransform setm setpoint setrotation setscale setskew setsrid setupperleft setvalue
    setvalues setz sharedpaths shiftlongitude shortestline simplify simplifypolygonhull
    simplifypreservetopology simplifyvw skewx skewy slope snap snaptogrid split square squaregrid
    srid startpoint stddev4ma subdivide sum4ma summary summarystats summarystatsagg swapordinates
    symdifference symmetricdifference tile tileenvelope touches tpi transform transformpipeline
    translate transscale tri triangulatepolygon unaryunion union upperleftx upperlefty value
    valuecount valuepercent voronoilines voronoipolygons width within wkbtosql wkttosql
    worldtorastercoord worldtorastercoordx worldtorastercoordy wrapx x xmax xmin y ymax ymin z
    zmax zmflag zmin
"""

POSTGIS: frozenset[str] = frozenset(f"st_{name}" for name in _POSTGIS.split())
"""The functions of PostGIS, and of its rasters, that go by standard names."""

READS: frozenset[str] = frozenset(f"{_READS} {_READS_OF_EXTENSIONS}".split())
"""Functions that write nothing and leave nothing in the session."""

WRITES: frozenset[str] = frozenset(_WRITES.split())
"""Functions that write, notify, lock or reach other sessions, and leave nothing in their own."""
